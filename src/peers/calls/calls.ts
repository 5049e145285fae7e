import { LONGEST_MS, LONGEST_TIMER_MS } from "../../config/values/duration.js";
import { FleetError, quote } from "../../errors.js";
import type { RollingRequest, SpawnRequest, StopRequest } from "../../fleet/options.js";
import { validateSessionId, validateUser } from "../../model/ids.js";
import { deadline } from "../../runtime/deadline.js";
import { awaitMore } from "../../serve/logs/log-tail.js";
import { MORE_LOG_MS } from "../other-host.js";
import type { OwnHost } from "../own-host.js";
import { Params } from "./params.js";

type Handler = (own: OwnHost, params: Params, signal: AbortSignal) => Promise<unknown>;

const MAX_LINES = 1_000_000;
const MAX_COUNT = 1_000_000;

/** Everything that another host can ask for. Its parameters are checked like those of any stranger. */
const CALLS: Readonly<Record<string, Handler>> = {
  spawn: async (own, params, signal) => await own.spawn(userOf(params), spawnRequest(params), { signal }),
  spawnMany: async (own, params, signal) => {
    const users = params.texts("users").map((user) => validateUser(user));
    return await own.spawnMany(users, spawnRequest(params), { signal });
  },
  serverFor: async (own, params, signal) => await own.serverFor(userOf(params), spawnRequest(params), { signal }),
  servers: async (own, _, signal) => await own.servers({ signal }),
  server: async (own, params) => await own.server(params.text("id")),
  stop: async (own, params, signal) => await own.stop(params.texts("ids"), stopRequest(params, signal)),
  restart: async (own, params, signal) => await own.restart(params.texts("ids"), stopRequest(params, signal)),
  restartRolling: async (own, params, signal) =>
    await own.restartRolling(params.texts("ids"), rollingRequest(params, signal)),
  logEnd: async (own, params) => await own.logEnd(params.text("id"), params.whole("lines", MAX_LINES)),
  moreLog: async (own, params, signal) => {
    const at = params.object("at");
    const log = await own.logOf(params.text("id"));
    using limit = deadline(MORE_LOG_MS, signal);
    const rotated = at.has("rotated") ? at.whole("rotated", Number.MAX_SAFE_INTEGER) : null;
    const more = await awaitMore(log, { offset: at.whole("offset", Number.MAX_SAFE_INTEGER), rotated }, limit.signal);
    return { bytes: more.bytes.toString("base64"), at: more.at };
  },
  sessions: async (own, params) => await own.sessions(optionalUserOf(params)),
  sessionOf: async (own, params) => await own.sessionOf(validateSessionId(params.text("id")), userOf(params)),
  loaded: async (own) => await own.loaded(),
  evict: async (own, params) => await own.evict(sessionIds(params)),
  deleteSessions: async (own, params) => await own.deleteSessions(sessionIds(params), optionalUserOf(params)),
  gc: async (own, params, signal) =>
    await own.gc({
      ttlMs: params.whole("ttlMs", LONGEST_MS),
      dryRun: params.flag("dryRun"),
      user: optionalUserOf(params),
      signal,
    }),
  release: async (own, params, signal) =>
    await own.release(userOf(params), params.whole("waitMs", LONGEST_TIMER_MS), { signal }),
};

/**
 * Does what another host asks of this one.
 *
 * @throws FleetError `FLEET_METHOD_DENIED` for a method that is not in the table, `FLEET_USAGE_INVALID` for parameters
 * that do not fit, and whatever the work itself throws.
 */
export async function answerCall(own: OwnHost, method: string, given: object, signal: AbortSignal): Promise<unknown> {
  const handler = Object.hasOwn(CALLS, method) ? CALLS[method] : undefined;
  if (handler === undefined) {
    throw new FleetError("FLEET_METHOD_DENIED", `This host does not know the method ${quote(method)}.`, {
      suggestions: ["Use the same version of copilotfleet on all hosts."],
    });
  }
  return await handler(own, new Params(given), signal);
}

/** For a test that tries each call. */
export const CALL_NAMES = Object.keys(CALLS);

function userOf(params: Params): string {
  return validateUser(params.text("user"));
}

function optionalUserOf(params: Params): string | undefined {
  return params.has("user") ? userOf(params) : undefined;
}

function sessionIds(params: Params): string[] {
  return params.texts("ids").map((id) => validateSessionId(id));
}

function spawnRequest(params: Params): SpawnRequest {
  const request = params.object("request");
  return {
    ...(request.has("token") ? { token: request.tokenSource("token") } : {}),
    ...(request.has("cwd") ? { cwd: request.text("cwd") } : {}),
    ...(request.has("waitMs") ? { waitMs: request.whole("waitMs", LONGEST_TIMER_MS) } : {}),
  };
}

function stopRequest(params: Params, signal: AbortSignal): StopRequest {
  const request = params.object("request");
  return { ...drainTimeout(request), force: request.has("force") && request.flag("force"), signal };
}

function rollingRequest(params: Params, signal: AbortSignal): RollingRequest {
  const request = params.object("request");
  const maxUnavailable = request.has("maxUnavailable") ? request.whole("maxUnavailable", MAX_COUNT) : 1;
  return { ...drainTimeout(request), maxUnavailable: Math.max(1, maxUnavailable), signal };
}

function drainTimeout(request: Params): { drainTimeoutMs?: number } {
  return request.has("drainTimeoutMs") ? { drainTimeoutMs: request.whole("drainTimeoutMs", LONGEST_TIMER_MS) } : {};
}
