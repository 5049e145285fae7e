import { type AnyRoute, route } from "../route.js";
import * as s from "./schemas.js";
import { TurnWatch } from "./turn-watch.js";

/** The longest turn, in milliseconds. */
const TURN_MS = 3_600_000;
const LOOK_MS = 30_000;

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
      "30 seconds for its end. The turn continues if the client disconnects, unless the client asks otherwise with `abort`.",
    params: s.path,
    query: s.turnQuery,
    body: s.prompt,
    answer: { status: 200, description: "The reply.", schema: s.turn },
    errors: [404, 409, 413, 429, 502, 504],
    limitMs: TURN_MS,
    handle: async ({ fleet, identity: { user }, params: { id }, query, body, gitHubToken, signal, lasting }) => {
      const watch = new TurnWatch();
      const { text } = await fleet.sessions.use(id, body.prompt, {
        user,
        signal: query.abort === "disconnect" ? signal : lasting,
        timeout: body.timeout ?? TURN_MS,
        ...(gitHubToken === null ? {} : { session: { gitHubToken } }),
        onEvent: (event) => watch.push(event),
      });
      return { body: { turn: watch.turn, reply: text, usage: watch.usage } };
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
    errors: [404, 409],
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
