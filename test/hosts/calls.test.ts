import { mkdtemp } from "node:fs/promises";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import type { HostRecord } from "../../src/base/host.js";
import type { Config } from "../../src/config/schema.js";
import { answerCall, CALL_NAMES, type Calls, readAnswer } from "../../src/hosts/calls/rpc-table.js";
import { RemoteHost } from "../../src/hosts/remote-host.js";
import { encodeMessage } from "../../src/runtime/wire/frames.js";
import type { HostDirectory } from "../../src/servers/directory.js";
import { openStore } from "../../src/store/file/file-store.js";
import { noEvents } from "../fixtures/no-events.js";
import { removeFolder } from "../fixtures/remove-folder.js";
import { MessageReader } from "../fixtures/sessions/message-reader.js";

const REQUEST = {
  id: "r-1",
  session: "s-1",
  user: "alice",
  kind: "permission",
  openedAt: "2026-01-01T00:00:00.000Z",
  expiresAt: "2026-01-01T00:05:00.000Z",
  permission: { kind: "shell", fullCommandText: "ls" },
  question: null,
  outcome: null,
};

/** For each call, the parameters with which the first version of copilotfleet that had the call sent it. */
const SENT: Record<keyof Calls, object> = {
  spawn: { user: "alice", request: { cwd: "/x", waitMs: 5 } },
  spawnMany: { users: ["alice", "bob"], request: {} },
  serverFor: { user: "alice", request: {} },
  servers: {},
  server: { id: "a-1" },
  stop: { ids: ["a-1"], request: { drainTimeoutMs: 5, force: true } },
  restart: { ids: ["a-1"], request: {} },
  restartRolling: { ids: ["a-1"], request: { maxUnavailable: 2 } },
  logEnd: { id: "a-1", lines: 5 },
  quota: { user: "ann" },
  moreLog: { id: "a-1", at: { offset: 5, rotated: null } },
  sessions: { user: "alice" },
  sessionOf: { id: "s-1", user: "alice" },
  prompts: { id: "s-1", user: "alice", fromBytes: 5 },
  history: { id: "s-1", user: "alice", from: { ino: 2 ** 60, offset: 5, mark: "AAAA" } },
  histories: { sessions: [{ id: "s-1", serverId: "a-1", owner: "a" }] },
  loaded: {},
  activity: {},
  samples: { after: "2026-01-01T00:00:00.000Z" },
  evict: { ids: ["s-1"] },
  abort: { id: "a", user: "alice" },
  requests: { id: "s-1", user: "alice" },
  answerRequest: { id: "s-1", user: "alice", request: "r-1", answer: { decision: "deny", reason: "no" } },
  noteRequest: { change: { type: "request.opened", request: REQUEST } },
  deleteSessions: { ids: ["s-1"], user: "alice" },
  gc: { ttlMs: 5, dryRun: true },
  endTokens: { ends: [{ id: "0123456789abcdef", at: null, until: "2026-01-01T00:00:00.000Z" }] },
  tokenEnds: {},
  events: { after: 5, sinceMs: 5, user: "alice", types: ["token.issued"], limit: 100, waitMs: 5 },
  verifyEvents: {},
  purge: { user: "alice", dryRun: false },
  exportSession: { id: "s-1", user: "alice", waitMs: 5 },
  readArchive: { name: "a-1", offset: 5 },
  dropArchive: { name: "a-1" },
  writeArchive: { name: "a-1", offset: 5, bytes: "" },
  importArchive: { name: "a-1", user: "alice", id: "s-1" },
};

const SERVER = {
  id: "a-1",
  user: "alice",
  isolation: "per-user",
  hostName: "h1",
  away: false,
  host: "127.0.0.1",
  port: 5000,
  url: "127.0.0.1:5000",
  pid: 7,
  state: "ready",
  failure: null,
  crashes: 0,
  home: "/h",
  cwd: "/c",
  log: "/l",
  startedAt: null,
  uptimeMs: null,
  memoryBytes: 5,
  sessions: null,
  activeSessions: 0,
  version: "1.0.85",
  sandbox: { mode: "landlock", not: ["network"] },
};
const SESSION = {
  id: "s-1",
  owner: "alice",
  purpose: null,
  title: "Hello",
  kind: "private",
  members: [],
  persistence: "persistent",
  serverId: "a-1",
  host: "h1",
  stranded: false,
  state: "idle",
  model: null,
  createdAt: "2026-01-01T00:00:00.000Z",
  lastUsedAt: "2026-01-01T00:00:00.000Z",
  ttlMs: 5,
  expiresAt: "2026-01-01T00:00:00.005Z",
  sizeBytes: 5,
  lease: null,
};
const STOPPED = { id: "a-1", outcome: "drained", cut: [], hostName: "h1" };
const AT = { offset: 5, rotated: null };
const SAMPLE = {
  at: "2026-01-01T00:00:00.000Z",
  turns: { completed: 1, failed: 0, aborted: 0, cut: 0 },
  turnMs: { p50: 5, p95: null },
  turnsInFlight: 0,
  servers: 1,
  activeSessions: 2,
  evictions: 0,
  memoryBytes: 5,
};
const EVENT = {
  id: "e-1",
  seq: 5,
  at: "2026-01-01T00:00:00.000Z",
  type: "token.issued",
  actor: { user: null, tokenId: null, via: "command", os: "root" },
  user: "alice",
  sessionId: null,
  serverId: null,
  host: "h1",
  outcome: "ok",
  reason: null,
  detail: null,
};
const ANSWERED: Record<keyof Calls, unknown> = {
  spawn: { server: SERVER, created: true },
  spawnMany: [SERVER],
  serverFor: SERVER,
  servers: [SERVER],
  server: SERVER,
  stop: [STOPPED],
  restart: { stopped: [STOPPED], servers: [SERVER] },
  restartRolling: { stopped: [], servers: [] },
  logEnd: { server: "a-1", log: "/l", lines: ["", "x"], at: AT },
  quota: [{ kind: "chat", used: 1, included: null, overage: 0, resetsAt: null }],
  moreLog: { bytes: "", at: AT },
  sessions: [SESSION],
  sessionOf: SESSION,
  prompts: { bytes: 5, prompts: [{ messageId: "m-1", content: "hello" }] },
  history: { bytes: "", at: { ino: 2 ** 60, offset: 5, mark: "AAAA" }, atEnd: true, fate: "there" },
  histories: ["1 2 3 4", ""],
  loaded: [{ id: "s-1", usedMs: 5 }],
  activity: [{ id: "a-1", latencyMs: 1.5, turns: ["s-1"] }],
  samples: [SAMPLE],
  evict: { evicted: ["s-1"], skipped: [{ id: "s-2", reason: "leased" }] },
  abort: true,
  requests: [REQUEST],
  answerRequest: { ...REQUEST, outcome: "denied" },
  noteRequest: true,
  deleteSessions: ["s-1"],
  gc: { deleted: [], skipped: [], freedBytes: 0, dryRun: true, servers: [], remains: [], unreadable: [] },
  endTokens: 1,
  tokenEnds: [{ id: "0123456789abcdef", at: null, until: null }],
  events: { events: [EVENT], next: 5, hasMore: false },
  verifyEvents: { events: 5, brokenAt: { seq: 5, file: null, problem: "line 5 was changed" } },
  purge: {
    sessions: 1,
    servers: 1,
    tokens: 0,
    bytes: 5,
    remains: [{ host: "h1", what: "a file", why: "It names the user." }],
  },
  exportSession: { name: "a-1", bytes: 5, leftOut: 0 },
  readArchive: { bytes: "" },
  dropArchive: true,
  writeArchive: { name: "a-1" },
  importArchive: true,
};
const METHODS = Object.keys(SENT) as (keyof Calls)[];
const never = new AbortController().signal;

/** A host that only records each call, and returns the answer in `ANSWERED`. */
function noting() {
  const asked: Record<string, unknown> = {};
  const own = Object.fromEntries(
    METHODS.map((method) => [
      method,
      async (params: unknown) => {
        asked[method] = params;
        return await Promise.resolve(ANSWERED[method]);
      },
    ]),
  ) as unknown as Calls;
  return { own, asked };
}

describe("calls from other hosts", () => {
  it("answerCall runs this host's method of the same name for each method in the table of calls", async () => {
    expect([...CALL_NAMES].sort()).toEqual([...METHODS].sort());
    const { own, asked } = noting();
    for (const method of METHODS) {
      expect(await answerCall(own, method, SENT[method], never), method).toEqual(ANSWERED[method]);
    }
    expect(asked).toEqual(SENT);
  });

  it("answerCall ignores fields that this version does not know, and treats a null field as left out", async () => {
    const { own, asked } = noting();
    await answerCall(own, "stop", { ids: ["a-1"], request: { force: null, drainTimeoutMs: null, x: 1 }, y: {} }, never);
    await answerCall(own, "sessions", { user: null }, never);
    await answerCall(own, "moreLog", { id: "a-1", at: { offset: 5 } }, never);
    await answerCall(own, "restartRolling", { ids: ["a-1"], request: { maxUnavailable: 0, force: true } }, never);
    expect(asked).toEqual({
      stop: { ids: ["a-1"], request: {} },
      sessions: {},
      moreLog: SENT.moreLog,
      restartRolling: { ids: ["a-1"], request: { maxUnavailable: 1 } },
    });
  });

  it.each([
    ["server", {}, '"id" in a call from another host is missing.'],
    ["server", { id: "" }, '"id" in a call from another host is not a text.'],
    ["server", { id: "a\0b" }, '"id" in a call from another host is not a text.'],
    ["stop", { ids: ["a-1", 5], request: {} }, '"ids" in a call from another host is not a list of texts.'],
    ["stop", { ids: ["a-1"], request: [] }, '"request" in a call from another host is not an object.'],
    ["stop", { ids: ["a-1"], request: { force: "yes" } }, '"force" in a call from another host is not true or false.'],
    [
      "logEnd",
      { id: "a-1", lines: 1.5 },
      '"lines" in a call from another host is not a whole number from 0 to 1000000.',
    ],
    ...[
      { from: "env", name: "HOME" },
      { from: "file", path: "/t" },
      { from: "command", command: "id" },
    ].map((token): [string, object, string] => [
      "spawn",
      { user: "alice", request: { token } },
      '"token" in a call from another host is not allowed, because only this host names its token sources.',
    ]),
  ])("answerCall refuses a call of the method %s with the parameters %j", async (method, params, message) => {
    const { own, asked } = noting();
    await expect(answerCall(own, method, params, never)).rejects.toMatchObject({
      code: "FLEET_USAGE_INVALID",
      message,
      suggestions: ["Use the same version of copilotfleet on all hosts."],
    });
    expect(asked).toEqual({});
  });
});

describe("answers of other hosts", () => {
  it("readAnswer accepts an answer to each method in the table of calls, and drops unknown fields", () => {
    for (const method of METHODS) expect(readAnswer(method, ANSWERED[method], "h1"), method).toEqual(ANSWERED[method]);
    expect(readAnswer("servers", [{ ...SERVER, later: 1, state: "a-later-state" }], "h1")).toEqual([
      { ...SERVER, state: "a-later-state" },
    ]);
  });

  it.each([
    ["servers", null, "it is not a list"],
    ["servers", [{ ...SERVER, id: 5 }], '"id" is not a text'],
    ["sessionOf", {}, '"id" is missing'],
    ["moreLog", { bytes: "", at: { offset: -1 } }, '"offset" is not a whole number from 0 to 9007199254740991'],
  ] as const)("readAnswer refuses, for the call %s, the answer %j", (method, answer, why) => {
    expect(() => readAnswer(method, answer, "h1")).toThrow(
      expect.objectContaining({
        code: "FLEET_PROTOCOL_UNSUPPORTED",
        message: `Host h1 gave an answer to "${method}" that this version cannot read: ${why}.`,
      }),
    );
  });
});

describe("a remote host", () => {
  /** A front door that records the calls and answers them. */
  async function door() {
    const calls: { method: keyof Calls; params: unknown; limitMs: number }[] = [];
    const sockets = new Set<Socket>();
    const server = createServer((socket) => {
      sockets.add(socket);
      const reader = new MessageReader();
      socket.on("error", () => undefined);
      socket.on("data", (chunk) => {
        for (const message of reader.push(chunk)) {
          const { id, method, params } = message as { id?: string; method: string; params: (typeof calls)[number] };
          if (method === "fleet.call") calls.push(params);
          const result = method === "connect" ? { protocolVersion: 3 } : ANSWERED[params?.method];
          if (id !== undefined) socket.write(encodeMessage({ id, result }));
        }
      });
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const folder = await mkdtemp(join(tmpdir(), "copilotfleet-calls-"));
    const store = openStore("file", folder);
    onTestFinished(async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
      await store.close();
      await removeFolder(folder);
    });
    const record = { name: "h1", door: `127.0.0.1:${(server.address() as AddressInfo).port}`, gone: false };
    const directory = { own: "h2", list: async () => await Promise.resolve([record]) };
    const host = new RemoteHost(record as HostRecord, {
      store,
      directory: directory as unknown as HostDirectory,
      config: {
        drain: { timeoutMs: 1_000 },
        host: { tls: { cert: null, key: null, ca: null } },
      } as Config,
      events: noEvents,
    });
    return { host, calls };
  }

  it("RemoteHost sends each call with the parameters of the call's first version, and returns the answer", async () => {
    const { host, calls } = await door();
    for (const method of METHODS) {
      const ask = host[method] as (params: object) => Promise<unknown>;
      expect(await ask(SENT[method]), method).toEqual(ANSWERED[method]);
    }
    const { actor } = noEvents;
    const sent = Object.entries(SENT).map(([method, params]) => [method, { ...params, actor }]);
    expect(Object.fromEntries(calls.map(({ method, params }) => [method, params]))).toEqual(Object.fromEntries(sent));
    expect(Object.fromEntries(calls.map(({ method, limitMs }) => [method, limitMs]))).toEqual({
      spawn: 10_005,
      spawnMany: 40_000,
      serverFor: 40_000,
      servers: 10_000,
      server: 10_000,
      stop: 60_005,
      restart: 61_000,
      restartRolling: 61_000,
      logEnd: 10_000,
      quota: 10_000,
      moreLog: 15_000,
      sessions: 10_000,
      sessionOf: 10_000,
      prompts: 10_000,
      history: 10_000,
      histories: 10_000,
      loaded: 10_000,
      activity: 10_000,
      samples: 10_000,
      evict: 30_000,
      abort: 10_000,
      requests: 10_000,
      answerRequest: 10_000,
      noteRequest: 10_000,
      deleteSessions: 30_000,
      gc: 600_000,
      endTokens: 10_000,
      tokenEnds: 10_000,
      events: 10_005,
      verifyEvents: 600_000,
      purge: 600_000,
      exportSession: 600_005,
      readArchive: 10_000,
      dropArchive: 10_000,
      writeArchive: 10_000,
      importArchive: 600_000,
    });
  });
});
