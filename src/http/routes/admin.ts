import * as v from "valibot";
import type { StopRequest } from "../../hosts/options.js";
import type { ServerView } from "../../servers/server.js";
import { type AnyRoute, route } from "../route.js";
import * as a from "./admin-schemas.js";
import { given, pageOf } from "./fields.js";
import * as s from "./schemas.js";

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
    answer: { description: "The servers.", schema: a.servers },
    handle: async ({ fleet, query }) => ({
      body: { servers: shown(a.busyServer, await fleet.busyServers(query)), pool: await fleet.poolState() },
    }),
  }),
  route("Servers", "POST /v1/users/{id}/start", {
    ...WAITS,
    operation: "startUserServer",
    isWork: true,
    summary: "Start the server of a user",
    description: "Answers when the server runs. Changes nothing if it runs already.",
    body: s.nothing,
    answer: { description: "The server runs.", schema: a.started },
    handle: async ({ fleet, params: { id }, lasting: signal }) => {
      const { server, created } = await fleet.servers.spawn(id, { signal });
      return { body: { server: v.parse(s.server, server), created } };
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
      return { body: { stopped, servers: shown(s.server, servers) } };
    },
  }),
  route("Servers", "POST /v1/servers/{id}/stop", {
    ...WAITS,
    operation: "stopServer",
    summary: "Stop a server",
    description:
      "Waits for the turns of the server, and stops it. The next use of one of its sessions starts it again.",
    answer: { description: "The server has stopped.", schema: s.stopped },
    handle: async ({ fleet, params: { id }, body, lasting }) => ({
      body: await fleet.servers.stop([id], stopRequest(body, lasting)),
    }),
  }),
  route("Servers", "POST /v1/servers/{id}/drain", {
    ...WAITS,
    operation: "drainServer",
    summary: "Drain a server",
    description:
      "Closes the server to new turns, waits for the turns that run, and stops it. Cuts no turn before the time is up.",
    body: s.drainBody,
    answer: { description: "The server has stopped.", schema: s.stopped },
    handle: async ({ fleet, params: { id }, body, lasting }) => ({
      body: await fleet.servers.stop([id], stopRequest(body, lasting)),
    }),
  }),
  route("Servers", "GET /v1/hosts", {
    action: "manage",
    operation: "listHosts",
    summary: "List the hosts of the fleet",
    description: "Shows the state of each host, its servers and its sessions.",
    answer: { description: "The hosts.", schema: a.hosts },
    handle: async ({ fleet }) => ({ body: { hosts: await fleet.hostViews() } }),
  }),
  route("Servers", "GET /v1/samples", {
    action: "manage",
    operation: "listSamples",
    summary: "Show how the hosts were used in the last hour",
    description:
      "Each `serve` with the HTTP API takes a sample at every `health.interval`, and keeps the last 720 in its memory. A host that does not answer is left out.",
    query: a.sampleFilter,
    answer: { description: "The samples of each host, the oldest first.", schema: a.samples },
    handle: async ({ fleet, query: { after } }) => ({ body: { hosts: await fleet.samples(after) } }),
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
      return { body: { tokens: page, next } };
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
    handle: async ({ fleet, body: { user, ...options } }) => ({ body: await fleet.tokens.issue(user, given(options)) }),
  }),
  route("Tokens", "DELETE /v1/tokens/{id}", {
    operation: "revokeToken",
    action: "manage",
    summary: "Revoke a token",
    description: "Connections with the token end within seconds.",
    answer: { status: 204, description: "The token is no longer valid.", schema: null },
    handle: async ({ fleet, params: { id } }) => {
      await fleet.tokens.revoke({ ids: [id] });
      return {};
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
