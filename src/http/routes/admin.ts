import * as v from "valibot";
import type { StopRequest } from "../../hosts/options.js";
import type { ServerView } from "../../servers/server.js";
import { type AnyRoute, route } from "../route.js";
import { described, given, pageOf } from "./fields.js";
import * as s from "./schemas.js";

const ALLOWED_TIME = 'a time, such as "2026-01-31T12:00:00Z"';

const sampleFilter = s.object({
  after: v.optional(
    v.pipe(
      v.string(ALLOWED_TIME),
      v.isoTimestamp(ALLOWED_TIME),
      v.description("The time of the last sample that the client has. Default: all samples."),
    ),
  ),
});

const number = v.number();
const count = (what: string) => described(number, what);
const numberOrNull = v.nullable(number);

export const busyServer = v.object({
  ...s.server.entries,
  turns: described(numberOrNull, "The sessions in a turn. Null if the server does not run or does not answer."),
  latencyMs: described(numberOrNull, "The time from a ping to its answer, in milliseconds."),
});

const servers = v.object({ servers: v.array(busyServer), pool: s.pool });

const started = v.object({
  server: s.server,
  created: described(v.boolean(), "False if the server already ran."),
});

export const host = v.object({
  name: v.string(),
  state: v.picklist(["serving", "draining", "unattended", "gone"]),
  term: numberOrNull,
  heartbeatAgeMs: numberOrNull,
  door: v.nullable(v.string()),
  startedAt: v.nullable(s.time),
  servers: number,
  sessions: number,
  memoryBytes: number,
});
const hosts = v.object({ hosts: v.array(host) });

export const sample = v.object({
  at: s.time,
  turns: described(
    v.object({ completed: number, failed: number, aborted: number, cut: number }),
    "The turns that ended since the sample before.",
  ),
  turnMs: described(
    v.object({ p50: numberOrNull, p95: numberOrNull }),
    "How long the turns took that ended in the last minute, with the time that they waited for people. Null if none did.",
  ),
  turnsInFlight: number,
  servers: count("Servers that run."),
  activeSessions: count("Sessions in the memory of these servers."),
  evictions: count("Sessions that were unloaded since the sample before, because a server had too many."),
  memoryBytes: count("The private memory of the servers and of everything that their sessions started."),
});

const samples = v.object({ hosts: v.array(v.object({ host: v.string(), samples: v.array(sample) })) });

/**
 * How long a stop or restart may take, in milliseconds: a drain of up to `drain.timeout`, and a start of half a minute.
 */
const STOP_MS = 3_600_000;

/** The common fields of the routes that wait for the turns of one server. */
const WAITS = {
  action: "manage",
  body: s.stopBody,
  isBodyOptional: true,
  errors: [409, 502, 504],
  limitMs: STOP_MS,
} as const;

export const ADMIN_ROUTES: readonly AnyRoute[] = [
  route("Servers", "GET /v1/servers", {
    action: "manage",
    operation: "listServers",
    summary: "List the servers of all hosts",
    description: "Also shows whether the pool of this host admits new servers and turns.",
    query: s.serverFilter,
    answer: { description: "The servers.", schema: servers },
    handle: async ({ fleet, query }) => ({
      servers: shown(busyServer, await fleet.busyServers(query)),
      pool: await fleet.poolState(),
    }),
  }),
  route("Servers", "POST /v1/users/{id}/start", {
    ...WAITS,
    operation: "startUserServer",
    isWork: true,
    summary: "Start the server of a user",
    description: "Answers when the server runs. Changes nothing if it runs already.",
    body: s.nothing,
    answer: { description: "The server runs.", schema: started },
    handle: async ({ fleet, params: { id }, lasting: signal }) => {
      const { server, created } = await fleet.servers.spawn(id, { signal });
      return { server: v.parse(s.server, server), created };
    },
  }),
  route("Servers", "POST /v1/servers/{id}/restart", {
    ...WAITS,
    operation: "restartServer",
    isWork: true,
    summary: "Restart a server",
    description: "Waits for the turns of the server, stops it, and starts it again with the same home.",
    answer: { description: "The server runs again.", schema: s.restarted },
    handle: async ({ fleet, params: { id }, body, lasting }) => {
      const { stopped, servers } = await fleet.servers.restart([id], stopRequest(body, lasting));
      return { stopped, servers: shown(s.server, servers) };
    },
  }),
  route("Servers", "POST /v1/servers/{id}/stop", {
    ...WAITS,
    operation: "stopServer",
    summary: "Stop a server",
    description:
      "Waits for the turns of the server, and stops it. The next use of one of its sessions starts it again.",
    answer: { description: "The server has stopped.", schema: s.stopped },
    handle: async ({ fleet, params: { id }, body, lasting }) =>
      await fleet.servers.stop([id], stopRequest(body, lasting)),
  }),
  route("Servers", "POST /v1/servers/{id}/drain", {
    ...WAITS,
    operation: "drainServer",
    summary: "Drain a server",
    description:
      "Closes the server to new turns, waits for the turns that run, and stops it. Cuts no turn before the time is up.",
    body: s.drainBody,
    answer: { description: "The server has stopped.", schema: s.stopped },
    handle: async ({ fleet, params: { id }, body, lasting }) =>
      await fleet.servers.stop([id], stopRequest(body, lasting)),
  }),
  route("Servers", "GET /v1/hosts", {
    action: "manage",
    operation: "listHosts",
    summary: "List the hosts of the fleet",
    description: "Shows the state of each host, its servers and its sessions.",
    answer: { description: "The hosts.", schema: hosts },
    handle: async ({ fleet }) => ({ hosts: await fleet.hostViews() }),
  }),
  route("Servers", "GET /v1/samples", {
    action: "manage",
    operation: "listSamples",
    summary: "Show how the hosts were used in the last hour",
    description:
      "Each `serve` with the HTTP API takes a sample at every `health.interval`, and keeps the last 720 in its memory. A host that does not answer is left out.",
    query: sampleFilter,
    answer: { description: "The samples of each host, the oldest first.", schema: samples },
    handle: async ({ fleet, query: { after } }) => ({ hosts: await fleet.samples(after) }),
  }),
  route("Tokens", "GET /v1/tokens", {
    action: "manage",
    operation: "listTokens",
    summary: "List the tokens of users",
    description: "Lists the tokens that were issued and not revoked, the newest first. Never shows a token itself.",
    query: s.tokenFilter,
    answer: { description: "One page of tokens.", schema: s.tokens },
    handle: async ({ fleet, query: { user, limit, cursor } }) => {
      const tokens = await fleet.tokens.list({ user });
      const { page, next } = pageOf(tokens, { limit, cursor });
      return { tokens: page, next };
    },
  }),
  route("Tokens", "POST /v1/tokens", {
    operation: "issueToken",
    action: "issue",
    summary: "Issue a token",
    description: "The answer is the only place that ever shows the token.",
    body: s.newToken,
    answer: { status: 201, description: "The token.", schema: s.issued },
    errors: [404],
    handle: async ({ fleet, body: { user, ...options } }) => await fleet.tokens.issue(user, given(options)),
  }),
  route("Tokens", "DELETE /v1/tokens/{id}", {
    operation: "revokeToken",
    action: "manage",
    summary: "Revoke a token",
    description: "Connections with the token end within seconds.",
    answer: { status: 204, description: "The token is no longer valid.", schema: null },
    handle: async ({ fleet, params: { id } }) => {
      await fleet.tokens.revoke({ ids: [id] });
    },
  }),
];

/**
 * Keeps only the fields of the schema. The other fields are paths on the server's machine, which mean nothing to a
 * client.
 */
function shown<T>(schema: v.GenericSchema<unknown, T>, servers: readonly ServerView[]): T[] {
  return servers.map((server) => v.parse(schema, server));
}

function stopRequest(body: v.InferOutput<typeof s.stopBody>, signal: AbortSignal): StopRequest {
  return { ...given(body), signal };
}
