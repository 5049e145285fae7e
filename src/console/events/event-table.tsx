import type { ComponentChildren } from "preact";
import { Name } from "../parts/name.js";
import { Badge, type Tone } from "../parts/notice.js";
import { exact } from "../parts/show.js";
import { type Column, Table } from "../parts/table.js";
import type { FleetEvent } from "./types.js";

const TONES: Readonly<Record<string, Tone>> = {
  "signon.refused": "bad",
  "turn.cut": "bad",
  "server.crashed": "bad",
  "events.lost": "bad",
  "limit.reached": "bad",
  "limit.near": "warn",
  "session.stolen": "warn",
  "user.suspended": "warn",
  "user.purged": "warn",
};
const OUTCOMES: Readonly<Record<string, Tone>> = {
  ok: "good",
  completed: "good",
  refused: "bad",
  failed: "bad",
  cut: "bad",
};
const WAYS: Readonly<Record<string, string>> = {
  command: "by a command",
  library: "by a program",
  door: "at the front door",
  http: "over HTTP",
  fleet: "by itself",
};

/** The events, the newest first. With `linksUsers`, the name of a user links to the events of this user. */
export function EventTable({ events, linksUsers }: { events: readonly FleetEvent[]; linksUsers: boolean }) {
  const name = (user: string) =>
    linksUsers ? (
      <a href={`#/events/${encodeURIComponent(user)}`}>
        <Name text={user} />
      </a>
    ) : (
      <Name text={user} />
    );
  const columns: Column<FleetEvent>[] = [
    { title: "Time", cell: ({ at }) => <Time at={at} /> },
    {
      title: "Event",
      cell: ({ type, detail }) => (
        <>
          <Badge word={type} tone={TONES[type] ?? ""} />
          {detail !== null && <bdi class="cell-note">{detail}</bdi>}
        </>
      ),
    },
    {
      title: "By",
      cell: ({ actor: { user, os, via, tokenId } }) => (
        <>
          {user !== null ? name(user) : via === "fleet" ? "the fleet" : <bdi>{os ?? "somebody"}</bdi>}
          <span class="cell-note">
            {WAYS[via] ?? via}
            {user !== null && os !== null && via === "command" && (
              <>
                {" "}
                of <bdi>{os}</bdi>
              </>
            )}
            {tokenId !== null && (
              <>
                , token <code>{tokenId}</code>
              </>
            )}
          </span>
        </>
      ),
    },
    { title: "About", cell: (event) => <About event={event} name={name} /> },
    {
      title: "Outcome",
      cell: ({ outcome, reason }) => (
        <>
          <Badge word={outcome} tone={OUTCOMES[outcome] ?? ""} />
          {reason !== null && <span class="cell-note">{reason}</span>}
        </>
      ),
    },
  ];
  return <Table label="Events" columns={columns} rows={events} idOf={({ id }) => id} />;
}

function About({ event, name }: { event: FleetEvent; name(user: string): ComponentChildren }) {
  const { user, sessionId, serverId, host } = event;
  if (user === null && sessionId === null && serverId === null && host === null) return <span class="quiet">–</span>;
  return (
    <>
      {user !== null && name(user)}
      {sessionId !== null && (
        <span class="cell-note">
          session <Name text={sessionId} />
        </span>
      )}
      {serverId !== null && (
        <span class="cell-note">
          server <Name text={serverId} />
        </span>
      )}
      {host !== null && (
        <span class="cell-note">
          on <bdi>{host}</bdi>
        </span>
      )}
    </>
  );
}

function Time({ at }: { at: string }) {
  const date = new Date(at);
  const isToday = date.toDateString() === new Date().toDateString();
  return (
    <time dateTime={at} title={exact(at)}>
      {date.toLocaleTimeString("en", { hour12: false })}
      {!isToday && <span class="cell-note">{date.toLocaleDateString("en", { day: "numeric", month: "short" })}</span>}
    </time>
  );
}
