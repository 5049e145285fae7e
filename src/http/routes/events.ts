import * as v from "valibot";
import { EVENT_TYPES, type FleetEvent } from "../../base/event.js";
import { oneOf } from "../../base/values/text.js";
import { type EventPositions, timedInOrder } from "../../hosts/all-events.js";
import { type AnyRoute, Reply, route } from "../route.js";
import type { StreamEvent } from "../sse.js";
import { described, given, object, pageOf, text } from "./fields.js";
import { paging, time } from "./schemas.js";

const word = v.string();
const orNull = v.nullable(word);

const eventFilter = object({
  ...paging,
  user: v.optional(
    described(
      text,
      "Only what this user did, or what concerns this user. Another user than the caller needs the scope `admin`.",
    ),
  ),
  type: v.optional(v.picklist(EVENT_TYPES, oneOf(EVENT_TYPES))),
  since: v.optional(
    described(text, "How long ago, such as `1h`, or a time in ISO 8601. Default: a day ago; for a stream: now."),
  ),
});

const event = v.object({
  id: word,
  seq: described(v.number(), "Counts the events of a host, from 1."),
  at: time,
  type: described(word, "The kind of event, such as `token.issued`. Later versions may have more kinds."),
  actor: v.object({ user: orNull, tokenId: orNull, via: word, os: orNull }),
  user: orNull,
  sessionId: orNull,
  serverId: orNull,
  host: orNull,
  outcome: described(
    word,
    "`ok`, `refused` or `failed`; for the end of a turn `completed`, `failed`, `aborted` or `cut`.",
  ),
  reason: orNull,
  detail: orNull,
});

const eventPage = v.object({ events: v.array(event), next: orNull });

const DAY = "24h";
/** An event's id begins with this many digits: the event's time in milliseconds since the epoch, in base 36. */
const TIME_DIGITS = 9;
const POSITION = /^([^:]{0,63}):(\d{1,15})$/;
/** How late an event may arrive, in milliseconds: after events of other hosts that are up to this much newer. */
const LATE_MS = 60_000;

export const EVENT_ROUTES: readonly AnyRoute[] = [
  route("Events", "GET /v1/events", {
    operation: "listEvents",
    action: "readAll",
    actionOf: ({ user }, identity) => (user === undefined || user === identity.user ? "readAll" : "manage"),
    summary: "List the events of the caller",
    description:
      "Lists what the caller did, and what concerns the caller, from the logs of all hosts, the newest first, and those of each host in " +
      "the reverse order of its log. With the scope `admin`, lists the events of all users. With `Accept: text/event-stream`, streams the events as they come. With the " +
      "id of an event of a stream as `Last-Event-ID`, the next stream goes on after that event on each host that had events in the " +
      "stream so far, and a minute before it on the others. The `id` in an event's data is allowed, too. It stands for the " +
      "event's time, so the stream may repeat events.",
    query: eventFilter,
    answer: {
      description: "The events.",
      schema: eventPage,
      stream: "The events, each with its id. If the stream fails, its last event is `problem`, with the error.",
    },
    limitMs: null,
    handle: async ({ fleet, identity, query, acceptsStream, header, signal }) => {
      const { limit, cursor, type, since } = query;
      const isAdmin = identity.scopes.includes("admin");
      const user = isAdmin ? query.user : identity.user;
      const filter = given({ user, type });
      if (acceptsStream) {
        const lastEventId = header("Last-Event-ID");
        const { id: last, after } = placeOf(lastEventId ?? "");
        const from = lastEventId === undefined ? (since ?? new Date()) : beginningOf(last, after);
        return new Reply({
          stream: { events: streamed(fleet.events.follow({ ...filter, since: from, after, signal }), last, after) },
        });
      }
      const events = await fleet.events.list({ ...filter, since: since ?? DAY });
      const { page, next } = pageOf(
        timedInOrder(events).map(({ event, time }) => ({ event, id: placeAt(event), createdAt: time })),
        { limit, cursor },
      );
      return { events: page.map(({ event }) => event), next };
    },
  }),
];

/**
 * A sort key for events of the same time: by host, and within a host the newest first. Each number has 16 digits, so
 * the keys sort as texts.
 */
function placeAt({ host, seq }: FleetEvent): string {
  return `${host ?? ""} ${Number.MAX_SAFE_INTEGER - seq}`;
}

/** Turns events into events of a stream. Leaves out the event with the id `last`, which the client already has. */
async function* streamed(
  events: AsyncGenerator<FleetEvent, void, undefined>,
  last: string,
  after: EventPositions,
): AsyncGenerator<StreamEvent[], void, undefined> {
  const seqs = new Map(Object.entries(after));
  for await (const event of events) {
    seqs.set(event.host ?? "", event.seq);
    if (event.id !== last) yield [{ id: idAt(event.id, seqs), event: event.type, data: event }];
  }
}

/** The id of an event in a stream, `ID@HOST:SEQ,HOST:SEQ`: the event's own id, and the last event sent of each host. */
function idAt(id: string, seqs: ReadonlyMap<string, number>): string {
  return `${id}@${[...seqs].map(([host, seq]) => `${host}:${seq}`).join(",")}`;
}

/**
 * Reads a text that {@link idAt} wrote. Ignores parts that it does not understand, because the header may contain any
 * text.
 */
function placeOf(text: string): { id: string; after: EventPositions } {
  const [id = "", positions = ""] = text.split("@");
  const pairs = positions.split(",").flatMap((text) => {
    const [, host = "", seq] = POSITION.exec(text) ?? [];
    return seq === undefined ? [] : [[host, Number(seq)] as const];
  });
  return { id, after: Object.fromEntries(pairs) };
}

/** The time from which the stream begins on hosts for which the client has no position. */
function beginningOf(id: string, after: EventPositions): Date {
  const time = timeOf(id) ?? new Date();
  // An event of another host may be older than the client's last event and still arrive later, so begin a minute
  // earlier.
  return Object.keys(after).length === 0 ? time : new Date(time.getTime() - LATE_MS);
}

function timeOf(id: string): Date | null {
  const ms = Number.parseInt(id.slice(0, TIME_DIGITS), 36);
  return Number.isSafeInteger(ms) ? new Date(ms) : null;
}
