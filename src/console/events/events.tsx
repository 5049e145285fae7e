import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { ChooseUser } from "../parts/choose-user.js";
import { exact, plural, useTitle } from "../parts/hooks.js";
import { Badge, Empty, Loading, Name, ProblemNotice, type Tone } from "../parts/notice.js";
import { type Column, Table } from "../parts/table.js";
import type { PageProps } from "../shell.js";
import { EVENT_TYPES, type FleetEvent, MOST, useFeed } from "./feed.js";

/**
 * The page that shows events live. Callers see their own events. An operator sees those of all users, or of the user in
 * the address.
 */
export function Events({ caller, id }: PageProps) {
  const isAdmin = caller.scopes.includes("admin");
  const user = isAdmin ? id : "";
  const [type, setType] = useState("");
  const title = !isAdmin ? "Events" : user === "" ? "Events of all users" : `Events of ${user}`;
  useTitle(title);
  return (
    <div class="page wide">
      <div class="page-head">
        <h1 dir="auto">{title}</h1>
        {isAdmin && <ChooseUser page="events" user={user} />}
        <label class="inline">
          <span>Type</span>
          <select value={type} onChange={({ currentTarget }) => setType(currentTarget.value)}>
            <option value="">all</option>
            {EVENT_TYPES.map((each) => (
              <option key={each}>{each}</option>
            ))}
          </select>
        </label>
      </div>
      <FeedTable key={`${type} of ${user}`} user={user} type={type} linksUsers={isAdmin} />
    </div>
  );
}

function FeedTable({ user, type, linksUsers }: { user: string; type: string; linksUsers: boolean }) {
  const query = (name: string, value: string) => (value === "" ? "" : `&${name}=${encodeURIComponent(value)}`);
  const feed = useFeed(query("user", user) + query("type", type));
  const { shown, waiting, older, problem, isPaused, pause, resume, loadOlder } = feed;
  return (
    <>
      <ProblemNotice problem={problem} />
      {shown === undefined && problem === undefined && <Loading />}
      {shown !== undefined && (
        <>
          <div class="section-head">
            <p class="quiet" role="status">
              {isPaused ? "Paused." : "New events appear at the top."}
            </p>
            {isPaused ? (
              <button type="button" class="button small" onClick={resume}>
                Resume{waiting.length > 0 && ` and show ${plural(waiting.length, "new event")}`}
              </button>
            ) : (
              <button type="button" class="button small" onClick={pause}>
                Pause
              </button>
            )}
          </div>
          {shown.length === 0 ? (
            <Empty title="There are no events of the last 24 hours." />
          ) : (
            <EventTable events={shown} linksUsers={linksUsers} />
          )}
          {older !== null && (
            <p class="more">
              <button type="button" class="button" onClick={() => void loadOlder()}>
                Show older events
              </button>
            </p>
          )}
          {shown.length >= MOST && (
            <p class="more">
              <span class="quiet">The {MOST} newest events are shown.</span>
            </p>
          )}
        </>
      )}
    </>
  );
}

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
