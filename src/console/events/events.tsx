import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { EVENT_TYPES, type FleetEvent } from "../api/types.js";
import { ChooseUser } from "../parts/choose-user.js";
import { exact, plural } from "../parts/hooks.js";
import { Badge, Button, Choice, Empty, Loaded, More, Name, PageFrame, type Tone } from "../parts/notice.js";
import { type Column, Table } from "../parts/table.js";
import type { PageProps } from "../shell.js";
import { MOST, useFeed } from "./feed.js";

/**
 * The page that shows events live. Callers see their own events. An operator sees those of all users, or of the user in
 * the address.
 */
export function Events({ caller, id }: PageProps) {
  const isAdmin = caller.scopes.includes("admin");
  const user = isAdmin ? id : "";
  const [type, setType] = useState("");
  const title = !isAdmin ? "Events" : user === "" ? "Events of all users" : `Events of ${user}`;
  const head = (
    <>
      {isAdmin && <ChooseUser page="events" user={user} />}
      <Choice label="Type" value={type} values={[["", "all"], ...EVENT_TYPES]} choose={setType} />
    </>
  );
  return (
    <PageFrame title={title} head={head}>
      <FeedTable key={`${type} of ${user}`} user={user} type={type} linksUsers={isAdmin} />
    </PageFrame>
  );
}

function FeedTable({ user, type, linksUsers }: { user: string; type: string; linksUsers: boolean }) {
  const query = (name: string, value: string) => (value === "" ? "" : `&${name}=${encodeURIComponent(value)}`);
  const feed = useFeed(query("user", user) + query("type", type));
  const { shown, waiting, older, problem, isPaused, pause, resume, loadOlder } = feed;
  return (
    <Loaded of={{ value: shown, problem }}>
      {(events) => (
        <>
          <div class="section-head">
            <p class="quiet" role="status">
              {isPaused ? "Paused." : "New events appear at the top."}
            </p>
            <Button class="small" act={isPaused ? resume : pause}>
              {isPaused ? "Resume" : "Pause"}
              {waiting.length > 0 && ` and show ${plural(waiting.length, "new event")}`}
            </Button>
          </div>
          {events.length === 0 ? (
            <Empty title="There are no events of the last 24 hours." />
          ) : (
            <EventTable events={events} linksUsers={linksUsers} />
          )}
          {older !== null && <More act={() => void loadOlder()}>Show older events</More>}
          {events.length >= MOST && <More>The {MOST} newest events are shown.</More>}
        </>
      )}
    </Loaded>
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
function EventTable({ events, linksUsers }: { events: readonly FleetEvent[]; linksUsers: boolean }) {
  const name = (user: string) => (
    <Name text={user} href={linksUsers ? `#/events/${encodeURIComponent(user)}` : undefined} />
  );
  const columns: Column<FleetEvent>[] = [
    { title: "Time", cell: ({ at }) => <Time at={at} />, note: dayOf },
    {
      title: "Event",
      cell: ({ type }) => <Badge word={type} tone={TONES[type] ?? ""} />,
      note: ({ detail }) => detail !== null && <bdi>{detail}</bdi>,
    },
    {
      title: "By",
      cell: ({ actor: { user, os, via } }) =>
        user !== null ? name(user) : via === "fleet" ? "the fleet" : <bdi>{os ?? "somebody"}</bdi>,
      note: ({ actor: { user, os, via, tokenId } }) => [
        WAYS[via] ?? via,
        user !== null && os !== null && via === "command" && [" of ", <bdi key="os">{os}</bdi>],
        tokenId !== null && [", token ", <code key="token">{tokenId}</code>],
      ],
    },
    { title: "About", cell: (event) => <About event={event} name={name} /> },
    {
      title: "Outcome",
      cell: ({ outcome }) => <Badge word={outcome} tone={OUTCOMES[outcome] ?? ""} />,
      note: ({ reason }) => reason,
    },
  ];
  return <Table label="Events" columns={columns} rows={events} idOf={({ id }) => id} />;
}

function About({ event, name }: { event: FleetEvent; name(user: string): ComponentChildren }) {
  const { user, sessionId, serverId, host } = event;
  const notes = Object.entries({ session: sessionId, server: serverId, on: host });
  if (user === null && notes.every(([, text]) => text === null)) return <span class="quiet">–</span>;
  return (
    <>
      {user !== null && name(user)}
      {notes.map(
        ([word, text]) =>
          text !== null && (
            <span key={word} class="cell-note">
              {word} <Name text={text} />
            </span>
          ),
      )}
    </>
  );
}

function Time({ at }: { at: string }) {
  return (
    <time dateTime={at} title={exact(at)}>
      {new Date(at).toLocaleTimeString("en", { hour12: false })}
    </time>
  );
}

/** The day of an event, unless that is today. */
function dayOf({ at }: FleetEvent): string | null {
  const date = new Date(at);
  const isToday = date.toDateString() === new Date().toDateString();
  return isToday ? null : date.toLocaleDateString("en", { day: "numeric", month: "short" });
}
