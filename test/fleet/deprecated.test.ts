import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { CopilotClient, CopilotSession } from "@github/copilot-sdk";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { DEPRECATED } from "../../src/fleet/deprecated.js";
import {
  type ClientOptions,
  type ConnectInfo,
  type CreateSessionOptions,
  type DrainRequest,
  type Duration,
  type EvictionResult,
  type Exchange,
  type ExchangeOptions,
  Fleet,
  type FrontDoor,
  type GcRequest,
  type GcResult,
  type Groups,
  type HeldLease,
  type HostRecord,
  type IssuedToken,
  type Lease,
  type LockOptions,
  type LogEnd,
  type LogPosition,
  type OpenDoorOptions,
  type Overview,
  type PendingReply,
  type PoolState,
  type ResumeSessionOptions,
  type RollingRequest,
  type RollingResult,
  type RouteView,
  type SendOptions,
  type ServerView,
  type SessionView,
  type SpawnRequest,
  type Stopped,
  type StopRequest,
  type Strategy,
  type SuperviseOptions,
  type Supervisor,
  type TokenView,
  type TurnReply,
} from "../../src/index.js";

/** The methods of `Fleet` before it had groups. Programs call them with these types. */
interface OldFleet {
  spawn: (user: string, request?: SpawnRequest) => Promise<{ server: ServerView; created: boolean }>;
  spawnMany: (users: readonly string[], request?: SpawnRequest) => Promise<ServerView[]>;
  spawnShared: (request?: SpawnRequest) => Promise<ServerView>;
  servers: () => Promise<ServerView[]>;
  hosts: () => Promise<HostRecord[]>;
  hostNames: () => Promise<string[]>;
  overview: () => Promise<Overview>;
  recordedServers: () => Promise<number>;
  recordedSessions: () => Promise<number>;
  repairRegistry: () => Promise<void>;
  repairSessionRecords: () => Promise<void>;
  brokenServers: () => Promise<string[]>;
  launchIds: () => Promise<Set<string>>;
  poolState: () => Promise<PoolState>;
  supervisorPid: () => Promise<number | null>;
  heldPorts: () => Promise<Set<number>>;
  server: (id: string) => Promise<ServerView>;
  logEnd: (id: string, lines: number) => Promise<LogEnd>;
  followLog: (id: string, at: LogPosition, signal: AbortSignal) => AsyncGenerator<Buffer>;
  serverFor: (user: string, request?: SpawnRequest) => Promise<ServerView>;
  route: (user: string, options?: { strategy?: Strategy }) => Promise<RouteView>;
  serverOf: (user: string) => Promise<ServerView>;
  stop: (ids: readonly string[], request?: StopRequest) => Promise<Stopped[]>;
  restart: (ids: readonly string[], request?: StopRequest) => Promise<{ stopped: Stopped[]; servers: ServerView[] }>;
  restartRolling: (ids: readonly string[], request?: RollingRequest) => Promise<RollingResult>;
  drain: (request?: DrainRequest) => Promise<Stopped[]>;
  undrain: () => Promise<void>;
  supervise: (options: SuperviseOptions) => Promise<Supervisor>;
  connectInfo: (user: string) => Promise<ConnectInfo>;
  clientForUser: (user: string, options?: ClientOptions & { signal?: AbortSignal }) => Promise<CopilotClient>;
  releaseUser: (user: string, request?: StopRequest) => Promise<Stopped>;
  createSession: (options: CreateSessionOptions) => Promise<CopilotSession>;
  resumeSession: (sessionId: string, options: ResumeSessionOptions) => Promise<CopilotSession>;
  send: (session: CopilotSession, prompt: string, options?: SendOptions) => PendingReply<TurnReply>;
  exchange: (sessionId: string, prompt: string, options: ExchangeOptions) => PendingReply<Exchange>;
  leaveSession: (session: CopilotSession, options?: { park?: boolean }) => Promise<SessionView>;
  evict: (what: { ids: readonly string[] } | { max: number }) => Promise<EvictionResult>;
  sessions: (user?: string) => Promise<SessionView[]>;
  sessionOf: (sessionId: string, user: string) => Promise<SessionView>;
  deleteSessions: (
    sessionIds: readonly string[],
    user?: string,
    options?: { ignoreNotFound?: boolean },
  ) => Promise<string[]>;
  withSessionLock: <T>(id: string, options: LockOptions, work: (lease: HeldLease) => Promise<T>) => Promise<T>;
  lockSession: (id: string, options: LockOptions) => Promise<HeldLease>;
  unlockSession: (sessionId: string, token: string) => Promise<void>;
  leaseOf: (sessionId: string, user?: string) => Promise<Lease | null>;
  gc: (request?: GcRequest) => Promise<GcResult>;
  issueToken: (user: string, options?: { ttl?: Duration }) => Promise<IssuedToken>;
  tokens: (user?: string) => Promise<TokenView[]>;
  revokeTokens: (which: { ids: readonly string[] } | { user: string }) => Promise<string[]>;
  openFrontDoor: (options?: OpenDoorOptions) => Promise<FrontDoor>;
  takeWarnings: () => string[];
  close: () => Promise<void>;
}

type Call = (...args: unknown[]) => unknown;
type Calls = Record<string, Call>;

let folder: string;
let fleet: Fleet;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "copilotfleet-names-"));
  fleet = await Fleet.open({ env: { COPILOTFLEET_HOME: join(folder, "state") }, cwd: folder });
});
afterEach(async () => {
  await fleet.close();
  rmSync(folder, { recursive: true });
});

const groupOf = (name: keyof Groups) => fleet[name] as unknown as Calls;
/** Makes a method of a group record its arguments and return `result`. */
function fake(group: keyof Groups, method: string, result: unknown) {
  const spy = vi.fn<Call>(() => result);
  Object.defineProperty(groupOf(group), method, { value: spy });
  return spy;
}

const aliases = Object.entries(DEPRECATED).filter((entry) => Array.isArray(entry[1])) as unknown as [
  string,
  [keyof Groups, string],
][];
const STOPPED = { id: "s", outcome: "drained", cut: [] };

describe("the older names of Fleet", () => {
  it("Fleet still has every older method with its old type", () => {
    const old: OldFleet = fleet;
    const names = Object.keys(DEPRECATED);
    for (const name of [...names, "servers", "sessions", "tokens", "hosts"])
      expect((old as unknown as Calls)[name], name).toBeTypeOf("function");
    expect(names.length).toBeGreaterThan(40);
  });

  it.each(aliases)(
    "the older method fleet.%s passes its arguments to its replacement, and returns the replacement's result",
    (name, [group, method]) => {
      expect(groupOf(group)[method]).toBeTypeOf("function");
      const result = Symbol("the result");
      const spy = fake(group, method, result);
      expect((fleet as unknown as Calls)[name]?.("a", { b: 1 }, "c")).toBe(result);
      expect(spy.mock.calls).toEqual([["a", { b: 1 }, "c"]]);
    },
  );

  it.each([
    ["spawnMany", ["servers", "spawnMany"], [["a"], { cwd: "/" }], [["a"], { cwd: "/" }], { servers: [1] }, [1]],
    ["spawnShared", ["servers", "spawnShared"], [{ cwd: "/" }], [{ cwd: "/" }], { server: 1, created: true }, 1],
    [
      "stop",
      ["servers", "stop"],
      [["a"], { force: true }],
      [["a"], { force: true }],
      { stopped: [STOPPED] },
      [STOPPED],
    ],
    ["logEnd", ["servers", "logEnd"], ["a", 5], ["a", { lines: 5 }], 1, 1],
    ["sessionOf", ["sessions", "get"], ["s", "u"], ["s", { user: "u" }], 1, 1],
    ["deleteSessions", ["sessions", "delete"], [["s"]], [["s"], { user: undefined }], { deleted: ["s"] }, ["s"]],
    [
      "deleteSessions",
      ["sessions", "delete"],
      [["s"], "u", { ignoreNotFound: true }],
      [["s"], { user: "u", ignoreNotFound: true }],
      { deleted: [] },
      [],
    ],
    ["unlockSession", ["leases", "release"], ["s", "t"], ["s", { token: "t" }], undefined, undefined],
    ["leaseOf", ["leases", "get"], ["s", "u"], ["s", { user: "u" }], null, null],
    [
      "releaseUser",
      ["clients", "release"],
      ["u", { force: true }],
      ["u", { force: true }],
      { stopped: [STOPPED] },
      STOPPED,
    ],
    ["revokeTokens", ["tokens", "revoke"], [{ ids: ["a"] }], [{ ids: ["a"] }], { revoked: ["a"] }, ["a"]],
    ["drain", ["pool", "drain"], [{ timeout: "1s" }], [{ timeout: "1s" }], { stopped: [STOPPED] }, [STOPPED]],
  ] as const)(
    "the older method fleet.%s converts its arguments for its replacement, and converts the replacement's result",
    async (name, [group, method], given, passed, returned, result) => {
      const spy = fake(group, method, returned);
      expect(await (fleet as unknown as Calls)[name]?.(...given)).toEqual(result);
      expect(spy.mock.calls).toEqual([passed]);
    },
  );

  it("the older method fleet.followLog passes its position and its signal on as options", async () => {
    const { signal } = new AbortController();
    const spy = fake("servers", "followLog", "pieces");
    const at = { offset: 1, rotated: null };
    expect(fleet.followLog("a", at, signal)).toBe("pieces");
    expect(spy.mock.calls).toEqual([["a", { at, signal }]]);
  });

  it.each([
    ["servers", [], []],
    ["hosts", [], []],
    ["sessions", [], []],
    ["sessions", ["alice"], []],
    ["tokens", ["alice"], []],
  ] as const)(
    "fleet.%s can still be called as a function with the arguments %j, and then returns a list",
    async (name, args, result) => {
      expect(await (fleet as unknown as Calls)[name]?.(...args)).toEqual(result);
    },
  );

  it("an older method of Fleet refuses bad arguments and any call after close(), as the new method does", async () => {
    await expect(fleet.sessions("a b")).rejects.toMatchObject({ code: "FLEET_USER_INVALID" });
    await expect(fleet.sessions.list({ user: "a b" })).rejects.toMatchObject({ code: "FLEET_USER_INVALID" });
    await expect(fleet.logEnd("a", -1)).rejects.toMatchObject({ code: "FLEET_USAGE_INVALID" });
    await fleet.close();
    await expect(fleet.sessions("alice")).rejects.toMatchObject({ code: "FLEET_CLOSED" });
    await expect(fleet.sessions.list()).rejects.toMatchObject({ code: "FLEET_CLOSED" });
  });
});
