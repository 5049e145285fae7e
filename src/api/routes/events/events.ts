import type { FleetEvent } from "../../../model/events/event.js";
import { type AnyRoute, route } from "../../route.js";
import type { StreamEvent } from "../../streams/sse.js";
import { given } from "../given.js";
import { pageOf } from "../page.js";
import * as s from "./schemas.js";

const DAY = "24h";
/** An id begins with the time of its event, in milliseconds since the epoch and to the base of 36. */
const TIME_DIGITS = 9;

export const EVENT_ROUTES: readonly AnyRoute[] = [
  route({
    method: "GET",
    path: "/v1/events",
    operation: "listEvents",
    action: "readAll",
    actionOf: ({ user }, identity) => (user === undefined || user === identity.user ? "readAll" : "manage"),
    about: "none",
    isWork: false,
    tag: "Events",
    summary: "List the events of the caller",
    description:
      "Lists what the caller did, and what concerns the caller, from the logs of all hosts, the newest first. With the scope " +
      "`admin`, lists the events of all users. With `Accept: text/event-stream`, streams the events as they come. With the " +
      "id of an event as `Last-Event-ID`, the stream begins after that event, and may repeat events of the same millisecond.",
    params: null,
    query: s.eventFilter,
    body: null,
    answer: {
      status: 200,
      description: "The events.",
      schema: s.events,
      stream: "The events, each with its id. If the stream fails, its last event is `problem`, with the error.",
    },
    errors: [],
    limitMs: null,
    handle: async ({ fleet, identity, query, acceptsStream, lastEventId, signal }) => {
      const { limit, cursor, type, since } = query;
      const isAdmin = identity.scopes.includes("admin");
      const user = isAdmin ? query.user : identity.user;
      const filter = given({ user, type });
      if (acceptsStream) {
        const from = lastEventId === undefined ? (since ?? new Date()) : (timeOf(lastEventId) ?? new Date());
        return { stream: { events: streamed(fleet.events.follow({ ...filter, since: from, signal }), lastEventId) } };
      }
      const events = await fleet.events.list({ ...filter, since: since ?? DAY });
      const { page, next } = pageOf(
        events.map((event) => ({ event, id: event.id, createdAt: event.at })),
        { limit, cursor },
      );
      return { body: { events: page.map(({ event }) => event), next } };
    },
  }),
];

async function* streamed(
  events: AsyncGenerator<FleetEvent, void, undefined>,
  after: string | undefined,
): AsyncGenerator<StreamEvent, void, undefined> {
  for await (const event of events) if (event.id !== after) yield { id: event.id, event: event.type, data: event };
}

function timeOf(id: string): Date | null {
  const ms = Number.parseInt(id.slice(0, TIME_DIGITS), 36);
  return Number.isSafeInteger(ms) ? new Date(ms) : null;
}
