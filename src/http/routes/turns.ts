import * as v from "valibot";
import type { TurnResult } from "../../hosts/options.js";
import type { RequestChange } from "../../sessions/requests.js";
import type { ApiFleet, SessionEvent } from "../fleet.js";
import { type AnyRoute, Reply, route } from "../route.js";
import { type EventStream, MOST_WAITING_BYTES, type StreamEvent, tooSlow } from "../sse.js";
import { described, given, TURN_MS } from "./fields.js";
import { request } from "./requests.js";
import * as s from "./schemas.js";
import { object, time, turn } from "./schemas.js";

/* The events in the streams of a turn and of a session: which of them a client gets, and their schemas. */

const string = v.string();
const requests = ["request.opened", "request.closed"] as const;

/** The events of each group that `?events=` can name. */
const GROUPS = {
  text: ["user.message", "assistant.message_delta", "assistant.message"],
  tools: ["tool.execution_start", "tool.execution_complete", ...requests],
  requests,
} as const;
/** The events that every stream has, because they show how a turn or the stream ended. */
const ENDS = ["session.error", "abort", "session.shutdown", "turn.end", "problem"] as const;
type Group = keyof typeof GROUPS;

const ALLOWED = `a list of ${[...Object.keys(GROUPS), "all"].join(", ")}, with commas between them`;
const DEFAULT = "text,tools";

const events = v.optional(
  v.pipe(
    v.string(ALLOWED),
    v.check((given) => given.split(",").every((each) => each === "all" || Object.hasOwn(GROUPS, each)), ALLOWED),
    v.description(
      "The groups of events to send, with commas between them. `text`: prompts and replies. `tools`: tool calls, " +
        "permissions and questions. `requests`: permissions and questions alone. `all`: everything that the runtime sends, " +
        `also the system prompt. The ends of turns are always sent. Default: \`${DEFAULT}\`.`,
    ),
  ),
);

const turnQuery = object({
  events,
  abort: v.optional(
    described(
      v.picklist(["disconnect"], "disconnect"),
      "With `disconnect`, the turn is aborted when the client closes the connection.",
    ),
  ),
});

const eventsQuery = object({
  events,
  follow: v.optional(
    described(
      v.picklist(["true", "false"], "true, false"),
      "With `false`, the stream ends with the last event that is recorded. Default: `true`.",
    ),
  ),
});

/** Returns whether the client gets an event of this type. @param groups the value of `?events=` */
function selection(groups: string = DEFAULT): (type: string) => boolean {
  const chosen = groups.split(",");
  if (chosen.includes("all")) return () => true;
  const types = new Set<string>([...ENDS, ...(chosen as Group[]).flatMap((group) => [...GROUPS[group]])]);
  return (type) => types.has(type);
}

/** An object with at least these fields. */
const open = <Entries extends v.ObjectEntries>(entries: Entries) => v.objectWithRest(entries, v.unknown());

/** The schema of an event of the runtime, with the fields that clients need. */
function runtimeEvent(type: string, description: string, data: v.ObjectEntries) {
  return described(
    open({
      type: v.picklist([type]),
      id: string,
      timestamp: time,
      agentId: v.optional(described(string, "The sub-agent whose event this is.")),
      data: open(data),
    }),
    description,
  );
}

const toolCallId = described(string, "The same in both events of a call.");

/** The schemas of the events' data, for the OpenAPI document. `problem` is missing, because its schema is there. */
export const SESSION_EVENTS = {
  "user.message": runtimeEvent("user.message", "A prompt.", {
    content: string,
    messageId: v.optional(described(string, "The id of the turn.")),
    source: v.optional(described(string, "The sender, if it is not the user, such as a part of the runtime.")),
  }),
  "assistant.message_delta": runtimeEvent("assistant.message_delta", "A piece of a reply. Not recorded.", {
    messageId: described(string, "The message that the piece belongs to."),
    deltaContent: string,
  }),
  "assistant.message": runtimeEvent("assistant.message", "A message of the model, in full.", {
    messageId: string,
    content: described(string, "Empty if the model only calls tools."),
    toolRequests: v.optional(v.array(open({ toolCallId: string, name: string }))),
  }),
  "tool.execution_start": runtimeEvent("tool.execution_start", "A tool call begins.", {
    toolCallId,
    toolName: string,
    arguments: v.optional(v.unknown()),
  }),
  "tool.execution_complete": runtimeEvent("tool.execution_complete", "A tool call has ended.", {
    toolCallId,
    success: v.boolean(),
    result: v.optional(open({ content: string })),
    error: v.optional(open({ message: string, code: v.optional(string) })),
  }),
  "request.opened": request,
  "request.closed": request,
  "session.error": runtimeEvent("session.error", "The turn failed.", {
    message: string,
    statusCode: v.optional(described(v.number(), "The status of the model service's answer.")),
  }),
  abort: runtimeEvent("abort", "The turn was aborted.", { reason: string }),
  "session.shutdown": runtimeEvent("session.shutdown", "The session was unloaded. A turn that runs is cut.", {}),
  "turn.end": turn,
};

/** The runtime does not record deltas, and the end of a turn has no event of ours. */
const { "assistant.message_delta": _, "turn.end": __, ...RECORDED_EVENTS } = SESSION_EVENTS;

export const TURN_ROUTES: readonly AnyRoute[] = [
  route("Turns", "POST /v1/sessions/{id}/turns", {
    operation: "runTurn",
    action: "use",
    isWork: true,
    summary: "Run one turn",
    description:
      "Sends the prompt, and answers when the turn is over. If somebody else's turn runs in the session, the prompt waits up to " +
      "30 seconds for its end. The turn continues if the client disconnects, unless the client asks otherwise with `abort`. " +
      "With `Accept: text/event-stream`, the answer is the stream of the turn's events, which begins with the turn. The caller's " +
      "requests with the same `Idempotency-Key` are one turn, and all get its reply.",
    query: turnQuery,
    body: s.prompt,
    isRepeatable: true,
    answer: {
      description: "The reply.",
      schema: s.turn,
      stream: "The events of the turn. The last one is `turn.end`, with the reply, or `problem`, with the error.",
      events: SESSION_EVENTS,
    },
    errors: [409, 413, 429, 502, 504],
    limitMs: TURN_MS,
    handle: async (call) => {
      const { fleet, identity, params, query, body, gitHubToken, signal, lasting, draining } = call;
      const attachments = body.attachments?.map(({ displayName, ...each }) => ({ ...each, ...given({ displayName }) }));
      const begin = (listeners?: TurnListeners) =>
        fleet.turn(params.id, body.prompt, {
          user: identity.user,
          tokenId: identity.tokenId,
          signal: query.abort === "disconnect" ? signal : lasting,
          timeout: body.timeout ?? TURN_MS,
          ...(gitHubToken === null ? {} : { session: { gitHubToken } }),
          ...given({ key: call.idempotencyKey, attachments, interactive: body.interactive }),
          askUntil: draining,
          ...listeners,
        });
      if (call.acceptsStream) return new Reply(await streamTurn(begin, selection(query.events)));
      return turnOf(await begin());
    },
  }),
  route("Turns", "GET /v1/sessions/{id}/events", {
    operation: "streamEvents",
    action: "read",
    summary: "Stream the events of a session",
    description:
      "Streams the recorded events of the session, from its beginning, and then those that are added. With the id of an event " +
      "as `Last-Event-ID`, begins after that event, at any host of the fleet. Each event comes once. The stream has no deltas: " +
      "the stream of a turn has them. Starts no server.",
    query: eventsQuery,
    answer: {
      description: "The events.",
      schema: null,
      stream: "The events, each with its id. If the stream fails, its last event is `problem`, with the error.",
      events: RECORDED_EVENTS,
    },
    errors: [409],
    limitMs: null,
    handle: async ({ fleet, identity: { user }, params: { id }, query, header, signal }) => {
      const options = { user, ...given({ after: header("Last-Event-ID") }) };
      // Ask for one event, so that an unknown `Last-Event-ID` fails here, before the stream begins. After an error in a
      // stream, the client would connect with the same id again and again.
      for await (const _ of fleet.readEvents(id, { ...options, signal })) break;
      const follow = query.follow !== "false";
      const isWanted = selection(query.events);
      const events = recorded(fleet.readEvents(id, { ...options, follow, signal }), isWanted, signal);
      const between = requestsOf(fleet, { id, user });
      return new Reply({ stream: follow && isWanted("request.opened") ? { events, between } : { events } });
    },
  }),
  route("Turns", "POST /v1/sessions/{id}/abort", {
    operation: "abortTurn",
    action: "use",
    summary: "Abort the turn that runs in a session",
    description:
      "Aborts the turn, whichever client began it. In a collaborative session, nobody can abort the turn of another member. The " +
      "request that began the turn is answered with what the model had written so far.",
    body: s.nothing,
    isBodyOptional: true,
    answer: { status: 202, description: "The server was told to abort the turn.", schema: s.aborted },
    errors: [409, 502, 504],
    handle: async ({ fleet, identity: { user }, params: { id } }) => await fleet.sessions.abort(id, { user }),
  }),
  route("Turns", "GET /v1/sessions/{id}/transcript", {
    operation: "getTranscript",
    action: "read",
    summary: "Read the conversation so far",
    description: "Starts no server, and works during a turn, too.",
    query: s.transcriptQuery,
    answer: { description: "The conversation.", schema: s.transcript },
    errors: [409],
    handle: async ({ fleet, identity: { user }, params: { id }, query: { turns }, signal }) =>
      await fleet.sessions.transcript(id, { user, turns, signal }),
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
  return (send) => fleet.onRequests(whose, ({ type, request }) => send({ event: type, data: request }));
}

export interface TurnListeners {
  onEvent: (event: SessionEvent) => void;
  onRequest?: (change: RequestChange) => void;
}

/**
 * Begins a turn, and resolves with the stream of its events once the first event is there. If the turn succeeds, the
 * last event is `turn.end`.
 *
 * @param isWanted whether the client gets an event of this type
 * @returns also `done`, which settles when the turn is over. The turn continues if the client leaves.
 * @throws the error of a turn that fails before its first event
 */
export async function streamTurn(
  begin: (listeners: TurnListeners) => PromiseLike<TurnResult>,
  isWanted: (type: string) => boolean,
): Promise<{ stream: EventStream; done: Promise<void> }> {
  const waiting = new WaitingEvents();
  const done = (async () => {
    try {
      const reply = await begin({
        onEvent: (event) => waiting.push(eventOf(event, isWanted)),
        onRequest: ({ type, request }) => {
          if (isWanted(type)) waiting.push({ event: type, data: request });
        },
      });
      waiting.push({ event: "turn.end", data: turnOf(reply) });
      waiting.end();
    } catch (error) {
      waiting.end(error);
    }
  })();
  await waiting.ready();
  return { stream: { events: waiting.read() }, done };
}

/** The answer for a turn. */
function turnOf({ turn, outcome, text, usage }: TurnResult) {
  return { turn, outcome, reply: text, usage };
}

/**
 * Converts an event of a turn into an event of the stream. Only recorded events have an id. `system.message` has none:
 * the runtime (1.0.85) sends it with each turn without marking it as ephemeral, but records it only once.
 */
function eventOf(event: SessionEvent, isWanted: (type: string) => boolean): StreamEvent {
  const isRecorded = event.ephemeral !== true && event.type !== "system.message";
  const id = isRecorded ? event.id : undefined;
  return isWanted(event.type) ? { id, event: event.type, data: event } : { id, event: null, data: null };
}

/**
 * After a batch with a delta (a piece of the reply), how long to collect events for the next batch, in milliseconds. A
 * text that grows twenty times a second still looks fluent. Neither the first delta nor the end of the turn waits.
 */
const GATHER_MS = 50;
const DELTA = "assistant.message_delta";

/** Buffers the events that the client has not read. Fails above {@link MOST_WAITING_BYTES}. */
class WaitingEvents {
  #events: StreamEvent[] = [];
  #bytes = 0;
  #isOver = false;
  #failure: unknown;
  #wake = (): void => undefined;
  #endGathering = (): void => undefined;

  push(event: StreamEvent): void {
    if (this.#isOver || (event.event === null && event.id === undefined)) return;
    const json = JSON.stringify(event.data);
    this.#bytes += json.length;
    this.#events.push({ ...event, json });
    if (this.#bytes > MOST_WAITING_BYTES) {
      this.#events = [];
      this.end(tooSlow("The client reads the events of the turn too slowly. The turn goes on."));
    }
    this.#wake();
  }

  end(failure?: unknown): void {
    if (!this.#isOver) this.#failure = failure;
    this.#isOver = true;
    this.#endGathering();
    this.#wake();
  }

  /** Resolves when there is an event, or when the turn is over. @throws the turn's error if there is no event */
  async ready(): Promise<void> {
    while (this.#events.length === 0 && !this.#isOver) await new Promise<void>((resolve) => (this.#wake = resolve));
    if (this.#events.length === 0 && this.#failure !== undefined) throw this.#failure;
  }

  async *read(): AsyncGenerator<readonly StreamEvent[], void, undefined> {
    try {
      for (;;) {
        await this.ready();
        const events = this.#events;
        if (events.length === 0) return;
        this.#events = [];
        this.#bytes = 0;
        yield events;
        if (this.#isOver || !events.some(({ event }) => event === DELTA)) continue;
        await new Promise<void>((resolve) => {
          this.#endGathering = resolve;
          setTimeout(resolve, GATHER_MS);
        });
      }
    } finally {
      this.end();
      this.#events = [];
    }
  }
}
