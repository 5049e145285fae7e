import type { ApiFleet, SessionEvent } from "../fleet.js";
import { type AnyRoute, route } from "../route.js";
import type { EventStream, StreamEvent } from "../streams/sse.js";
import { TURN_MS } from "./fields.js";
import { given } from "./given.js";
import * as s from "./schemas.js";
import { eventsQuery, SESSION_EVENTS, selection, turnQuery } from "./session-events.js";
import { streamTurn, type TurnListeners, turnOf } from "./turn-stream.js";

const LOOK_MS = 30_000;
/** The runtime does not record deltas, and the end of a turn has no event of ours. */
const { "assistant.message_delta": _, "turn.end": __, ...RECORDED_EVENTS } = SESSION_EVENTS;

export const TURN_ROUTES: readonly AnyRoute[] = [
  route({
    method: "POST",
    path: "/v1/sessions/{id}/turns",
    operation: "runTurn",
    action: "use",
    about: "session",
    isWork: true,
    tag: "Turns",
    summary: "Run one turn",
    description:
      "Sends the prompt, and answers when the turn is over. If somebody else's turn runs in the session, the prompt waits up to " +
      "30 seconds for its end. The turn continues if the client disconnects, unless the client asks otherwise with `abort`. " +
      "With `Accept: text/event-stream`, the answer is the stream of the turn's events, which begins with the turn. The caller's " +
      "requests with the same `Idempotency-Key` are one turn, and all get its reply.",
    params: s.path,
    query: turnQuery,
    body: s.prompt,
    isRepeatable: true,
    answer: {
      status: 200,
      description: "The reply.",
      schema: s.turn,
      stream: "The events of the turn. The last one is `turn.end`, with the reply, or `problem`, with the error.",
      events: SESSION_EVENTS,
    },
    errors: [404, 409, 413, 429, 502, 504],
    limitMs: TURN_MS,
    handle: async (call) => {
      const { fleet, identity, params, query, body, gitHubToken, signal, lasting, draining } = call;
      const attachments = body.attachments?.map(({ displayName, ...each }) => ({ ...each, ...given({ displayName }) }));
      const begin = (listeners?: TurnListeners) =>
        fleet.sessions.turn(params.id, body.prompt, {
          user: identity.user,
          tokenId: identity.tokenId,
          signal: query.abort === "disconnect" ? signal : lasting,
          timeout: body.timeout ?? TURN_MS,
          ...(gitHubToken === null ? {} : { session: { gitHubToken } }),
          ...given({ key: call.idempotencyKey, attachments, interactive: body.interactive }),
          askUntil: draining,
          ...listeners,
        });
      if (call.acceptsStream) return await streamTurn(begin, selection(query.events));
      return { body: turnOf(await begin()) };
    },
  }),
  route({
    method: "GET",
    path: "/v1/sessions/{id}/events",
    operation: "streamEvents",
    action: "read",
    about: "session",
    isWork: false,
    tag: "Turns",
    summary: "Stream the events of a session",
    description:
      "Streams the recorded events of the session, from its beginning, and then those that are added. With the id of an event " +
      "as `Last-Event-ID`, begins after that event, at any host of the fleet. Each event comes once. The stream has no deltas: " +
      "the stream of a turn has them. Starts no server.",
    params: s.path,
    query: eventsQuery,
    body: null,
    answer: {
      status: 200,
      description: "The events.",
      schema: null,
      stream: "The events, each with its id. If the stream fails, its last event is `problem`, with the error.",
      events: RECORDED_EVENTS,
    },
    errors: [404, 409],
    limitMs: null,
    handle: async ({ fleet, identity: { user }, params: { id }, query, lastEventId, signal }) => {
      const options = { user, ...given({ after: lastEventId }) };
      // Ask for one event, so that an unknown `Last-Event-ID` fails here, before the stream begins. After an error in a
      // stream, the client would connect with the same id again and again.
      for await (const _ of fleet.sessions.followEvents(id, { ...options, signal })) break;
      const follow = query.follow !== "false";
      const isWanted = selection(query.events);
      const events = recorded(fleet.sessions.followEvents(id, { ...options, follow, signal }), isWanted, signal);
      const between = requestsOf(fleet, { id, user });
      return { stream: follow && isWanted("request.opened") ? { events, between } : { events } };
    },
  }),
  route({
    method: "POST",
    path: "/v1/sessions/{id}/abort",
    operation: "abortTurn",
    action: "use",
    about: "session",
    isWork: false,
    tag: "Turns",
    summary: "Abort the turn that runs in a session",
    description:
      "Aborts the turn, whichever client began it. In a collaborative session, nobody can abort the turn of another member. The " +
      "request that began the turn is answered with what the model had written so far.",
    params: s.path,
    query: null,
    body: s.nothing,
    isBodyOptional: true,
    answer: { status: 202, description: "The server was told to abort the turn.", schema: s.aborted },
    errors: [404, 409, 502, 504],
    limitMs: LOOK_MS,
    handle: async ({ fleet, identity: { user }, params: { id } }) => ({
      body: await fleet.sessions.abort(id, { user }),
    }),
  }),
  route({
    method: "GET",
    path: "/v1/sessions/{id}/transcript",
    operation: "getTranscript",
    action: "read",
    about: "session",
    isWork: false,
    tag: "Turns",
    summary: "Read the conversation so far",
    description: "Starts no server, and works during a turn, too.",
    params: s.path,
    query: s.transcriptQuery,
    body: null,
    answer: { status: 200, description: "The conversation.", schema: s.transcript },
    errors: [404, 409],
    limitMs: LOOK_MS,
    handle: async ({ fleet, identity: { user }, params: { id }, query: { turns }, signal }) => ({
      body: await fleet.sessions.transcript(id, { user, turns, signal }),
    }),
  }),
];

/**
 * The events that only the API itself may send. The agent of a session can write to the session's history, so it could
 * otherwise forge them.
 */
const OWN_EVENTS = /^(?:request\.|turn\.end$|problem$)/;

async function* recorded(
  events: AsyncIterable<SessionEvent>,
  isWanted: (type: string) => boolean,
  signal: AbortSignal,
): AsyncGenerator<StreamEvent[], void, undefined> {
  for await (const each of events) {
    if (OWN_EVENTS.test(each.type)) continue;
    yield [
      isWanted(each.type) ? { id: each.id, event: each.type, data: each } : { id: each.id, event: null, data: null },
    ];
  }
  // Throw the reason of the abort, so that the client learns why its stream ends.
  signal.throwIfAborted();
}

function requestsOf(fleet: ApiFleet, whose: { id: string; user: string }): NonNullable<EventStream["between"]> {
  return (send) => fleet.sessions.onRequests(whose, ({ type, request }) => send({ event: type, data: request }));
}
