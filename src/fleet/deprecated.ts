import type { LogPosition } from "../serve/logs/log-tail.js";
import type { Groups } from "./fleet.js";
import type { DrainRequest, SpawnRequest, StopRequest } from "./options.js";

/** The group and the method that an older name of `Fleet` calls, with the same arguments. */
type Alias = { [Group in keyof Groups]: readonly [Group, keyof Groups[Group]] }[keyof Groups];
/** The function for an older name whose arguments or result differ from those of the group's method. */
type Adapter = (fleet: Groups, ...args: never[]) => unknown;

/** The older names of `Fleet`. They keep working until 1.0. */
export const DEPRECATED = {
  /** @deprecated Use `servers.spawn`. */
  spawn: ["servers", "spawn"],
  /** @deprecated Use `servers.spawnMany`. */
  spawnMany: async ({ servers }: Groups, users: readonly string[], request?: SpawnRequest) =>
    (await servers.spawnMany(users, request)).servers,
  /** @deprecated Use `servers.spawnShared`. */
  spawnShared: async ({ servers }: Groups, request?: SpawnRequest) => (await servers.spawnShared(request)).server,
  /** @deprecated Use `servers.get`. */
  server: ["servers", "get"],
  /** @deprecated Use `servers.ofUser`. */
  serverOf: ["servers", "ofUser"],
  /** @deprecated Use `servers.place`. */
  serverFor: ["servers", "place"],
  /** @deprecated Use `servers.route`. */
  route: ["servers", "route"],
  /** @deprecated Use `servers.stop`. */
  stop: async ({ servers }: Groups, ids: readonly string[], request?: StopRequest) =>
    (await servers.stop(ids, request)).stopped,
  /** @deprecated Use `servers.restart`. */
  restart: ["servers", "restart"],
  /** @deprecated Use `servers.restartRolling`. */
  restartRolling: ["servers", "restartRolling"],
  /** @deprecated Use `servers.logEnd`. */
  logEnd: async ({ servers }: Groups, id: string, lines: number) => await servers.logEnd(id, { lines }),
  /** @deprecated Use `servers.followLog`. */
  followLog: ({ servers }: Groups, id: string, at: LogPosition, signal: AbortSignal) =>
    servers.followLog(id, { at, signal }),

  /** @deprecated Use `sessions.create`. */
  createSession: ["sessions", "create"],
  /** @deprecated Use `sessions.resume`. */
  resumeSession: ["sessions", "resume"],
  /** @deprecated Use `sessions.send`. */
  send: ["sessions", "send"],
  /** @deprecated Use `sessions.use`. */
  exchange: ["sessions", "use"],
  /** @deprecated Use `sessions.leave`. */
  leaveSession: ["sessions", "leave"],
  /** @deprecated Use `sessions.get`. */
  sessionOf: async ({ sessions }: Groups, sessionId: string, user: string) => await sessions.get(sessionId, { user }),
  /** @deprecated Use `sessions.evict`. */
  evict: ["sessions", "evict"],
  /** @deprecated Use `sessions.gc`. */
  gc: ["sessions", "gc"],
  /** @deprecated Use `sessions.delete`. */
  deleteSessions: async (
    { sessions }: Groups,
    sessionIds: readonly string[],
    user?: string,
    options?: { ignoreNotFound?: boolean },
  ) => (await sessions.delete(sessionIds, { ...options, user })).deleted,

  /** @deprecated Use `leases.hold`. */
  withSessionLock: ["leases", "hold"],
  /** @deprecated Use `leases.acquire`. */
  lockSession: ["leases", "acquire"],
  /** @deprecated Use `leases.release`. */
  unlockSession: async ({ leases }: Groups, sessionId: string, token: string) =>
    await leases.release(sessionId, { token }),
  /** @deprecated Use `leases.get`. */
  leaseOf: async ({ leases }: Groups, sessionId: string, user?: string) => await leases.get(sessionId, { user }),

  /** @deprecated Use `clients.connect`. */
  clientForUser: ["clients", "connect"],
  /** @deprecated Use `clients.release`. */
  releaseUser: async ({ clients }: Groups, user: string, request?: StopRequest) =>
    (await clients.release(user, request)).stopped[0],
  /** @deprecated Use `clients.connectInfo`. */
  connectInfo: ["clients", "connectInfo"],

  /** @deprecated Use `tokens.issue`. */
  issueToken: ["tokens", "issue"],
  /** @deprecated Use `tokens.revoke`. */
  revokeTokens: async ({ tokens }: Groups, which: { ids: readonly string[] } | { user: string }) =>
    (await tokens.revoke(which)).revoked,

  /** @deprecated Use `doors.open`. */
  openFrontDoor: ["doors", "open"],

  /** @deprecated Use `pool.state`. */
  poolState: ["pool", "state"],
  /** @deprecated Use `pool.drain`. */
  drain: async ({ pool }: Groups, request?: DrainRequest) => (await pool.drain(request)).stopped,
  /** @deprecated Use `pool.undrain`. */
  undrain: ["pool", "undrain"],
  /** @deprecated Use `pool.supervise`. */
  supervise: ["pool", "supervise"],
  /** @deprecated Use `pool.supervisorPid`. */
  supervisorPid: ["pool", "supervisorPid"],

  /** @deprecated Use `hosts.names`. */
  hostNames: ["hosts", "names"],
  /** @deprecated Use `hosts.overview`. */
  overview: ["hosts", "overview"],

  /** @deprecated Use `records.servers`. */
  recordedServers: ["records", "servers"],
  /** @deprecated Use `records.sessions`. */
  recordedSessions: ["records", "sessions"],
  /** @deprecated Use `records.repairRegistry`. */
  repairRegistry: ["records", "repairRegistry"],
  /** @deprecated Use `records.repairSessions`. */
  repairSessionRecords: ["records", "repairSessions"],
  /** @deprecated Use `records.brokenServers`. */
  brokenServers: ["records", "brokenServers"],
  /** @deprecated Use `records.launchIds`. */
  launchIds: ["records", "launchIds"],
  /** @deprecated Use `records.heldPorts`. */
  heldPorts: ["records", "heldPorts"],
} as const satisfies Readonly<Record<string, Alias | Adapter>>;

type Table = typeof DEPRECATED;

/** The older names of `Fleet` with their types. */
export type DeprecatedNames = {
  [Name in keyof Table]: Table[Name] extends readonly [infer Group extends keyof Groups, infer Method]
    ? Groups[Group][Method & keyof Groups[Group]]
    : Table[Name] extends (fleet: Groups, ...args: infer Arguments) => infer Result
      ? (...args: Arguments) => Result
      : never;
};

/** Defines the older names on the prototype of `Fleet`. */
export function defineDeprecated(prototype: Groups): void {
  for (const [name, target] of Object.entries<Alias | Adapter>(DEPRECATED)) {
    const value = function (this: Groups, ...args: never[]): unknown {
      if (typeof target === "function") return target(this, ...args);
      const [group, method] = target;
      return (this[group] as unknown as Record<string, (...args: never[]) => unknown>)[method]?.(...args);
    };
    Object.defineProperty(prototype, name, { value, writable: true, configurable: true });
  }
}
