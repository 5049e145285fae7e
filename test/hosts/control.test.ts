import { mkdtemp, realpath } from "node:fs/promises";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { FleetError } from "../../src/base/errors.js";
import type { HostRecord } from "../../src/base/host.js";
import { LONGEST_TIMER_MS } from "../../src/base/values/measures.js";
import type { FrontDoor } from "../../src/door/door.js";
import type { DoorEvent } from "../../src/door/state/report.js";
import { Fleet } from "../../src/fleet/fleet.js";
import { ControlLink } from "../../src/hosts/calls/control-link.js";
import { CALL_NAMES } from "../../src/hosts/calls/rpc-table.js";
import { RemoteHost } from "../../src/hosts/remote-host.js";
import { issueHostToken, issueToken, listTokens, revokeTokens, sweepTokens } from "../../src/identity/tokens.js";
import { ensureNote } from "../../src/runtime/files/shared-storage.js";
import { HostDirectory } from "../../src/servers/directory.js";
import { openStore } from "../../src/store/file/file-store.js";
import type { Store } from "../../src/store/ports.js";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import { portVariables, testPorts } from "../fixtures/fleets/ports.js";
import { noEvents } from "../fixtures/no-events.js";
import { removeFolder } from "../fixtures/remove-folder.js";
import { altered } from "../fixtures/store/altered-store.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { storeKeyFile, withStoreKey } from "../fixtures/store/store-root.js";

const problem = redisProblem();
/** The settings of a host without TLS. */
const config = { host: { tls: { cert: null, key: null, ca: null } } };
const CALL = { method: "servers", params: {}, limitMs: 5_000 };

/** The front door of host h1 is in this process. The tests act as host h2. */
describe.skipIf(problem !== undefined)("a control connection", () => {
  let redis: RedisServer;
  let folder: string;
  let fleet: Fleet;
  let door: FrontDoor;
  let store: Store;
  let directory: HostDirectory;
  const events: DoorEvent[] = [];
  const requests: unknown[] = [];

  beforeAll(async () => {
    redis = await RedisServer.start();
    folder = await realpath(await mkdtemp(join(tmpdir(), "copilotfleet-control-")));
    const url = redis.url("control");
    const env = {
      PATH: process.env.PATH,
      HOME: folder,
      COPILOTFLEET_HOME: join(folder, "state"),
      COPILOTFLEET_HOST_NAME: "h1",
      COPILOTFLEET_STORE: url,
      COPILOTFLEET_STORE_OPTIONS_KEY_FILE: storeKeyFile(),
      ...portVariables(testPorts()),
      COPILOTFLEET_PROVIDER_TYPE: "echo",
      COPILOT_OFFLINE: "true",
    };
    fleet = await Fleet.open({ env, cwd: folder });
    door = await fleet.doors.open({
      listen: { host: "127.0.0.1", port: 0 },
      onEvent: (event) => events.push(event),
      onRequest: (report) => requests.push(report),
    });
    store = openStore(url, withStoreKey(join(folder, "other")), "h2");
    directory = new HostDirectory({ store, config: { storage: { shared: null } } });
    // The first write makes the database belong to a fleet.
    await revokeTokens(store, { ids: [(await issueToken(store, "nobody", null)).id] });
  });
  afterAll(async () => {
    await door.close();
    const { servers } = await fleet.hosts.overview();
    await fleet.servers.stop(
      servers.map(({ id }) => id),
      { force: true },
    );
    await fleet.close();
    await store.close();
    await redis.end();
    await removeFolder(folder);
  });

  afterEach(async () => {
    for (const { id } of await store.tokens.list()) await store.tokens.delete(id);
  });

  const url = () => `127.0.0.1:${door.address.port}`;
  const host = (over: Partial<HostRecord> = {}): HostRecord => ({
    name: "h1",
    instance: "i",
    door: url(),
    state: "serving",
    startedAt: new Date().toISOString(),
    storage: null,
    term: 1,
    gone: false,
    remainingMs: 60_000,
    ...over,
  });
  /** Enters h1 in the directory, so that a caller that waits for h1 finds it alive. */
  const beat = async () => {
    const h1 = openStore(redis.url("control"), withStoreKey(join(folder, "state")), "h1");
    await h1.hosts?.beat(ensureNote(fleet.stateRoot, "h1").instance, host(), 60_000);
    await h1.close();
  };

  it("answers another host's calls, and deletes the token that opened the control connection", async () => {
    const link = await ControlLink.open({ store, directory, config }, host());
    expect(await store.tokens.list()).toEqual([]);
    expect(await link.call("servers", {}, { limitMs: 5_000 })).toEqual([]);
    expect(door.clients, "it is no client").toBe(0);
    expect(requests, "nor do its calls count as a client's").toEqual([]);
    await link[Symbol.asyncDispose]();
    expect(events).toContainEqual(expect.objectContaining({ event: "host-connected", detail: "h2" }));
  });

  it("accepts only fleet.call with valid parameters on a control connection", async () => {
    const { token } = await issueHostToken(store, "h2", "h1");
    const raw = await RawClient.as(url(), token);
    for (const method of ["ping", "session.create", "sessions.list", "connect", "fleet.other"]) {
      expect((await raw.request(method, { sessionId: "x" })).error?.data?.code, method).toBe("FLEET_METHOD_DENIED");
    }
    expect((await raw.request("fleet.call", CALL)).result).toEqual([]);
    for (const wrong of [{}, { ...CALL, limitMs: 0 }, { ...CALL, method: 7 }, { ...CALL, params: [] }]) {
      expect((await raw.request("fleet.call", wrong)).error?.data?.code).toBe("FLEET_METHOD_DENIED");
    }
    for (const method of ["shutdown", "constructor", "__proto__", "toString", ""]) {
      expect((await raw.request("fleet.call", { ...CALL, method })).error?.data?.code).toBe("FLEET_METHOD_DENIED");
    }
  });

  it("rejects another host's calls with missing or invalid parameters, and starts no server for them", async () => {
    const { token } = await issueHostToken(store, "h2", "h1");
    const raw = await RawClient.as(url(), token);
    const refused = async (method: string, params: object) =>
      (await raw.request("fleet.call", { ...CALL, method, params })).error?.data?.code;
    expect(await refused("spawn", { user: "../x", request: {} })).toBe("FLEET_USAGE_INVALID");
    expect(await refused("spawn", { user: "bob", request: { token: { from: "command", command: "id" } } })).toBe(
      "FLEET_USAGE_INVALID",
    );
    expect(await refused("spawn", { user: "bob", request: { waitMs: "5" } })).toBe("FLEET_USAGE_INVALID");
    expect(await refused("sessionOf", { user: "bob", id: "a/b" })).toBe("FLEET_USAGE_INVALID");
    expect(await refused("logEnd", { id: "nobody", lines: -1 })).toBe("FLEET_USAGE_INVALID");
    expect(await refused("logEnd", { id: "nobody", lines: 5 })).toBe("FLEET_NAME_NOT_FOUND");
    expect(await refused("moreLog", { id: "nobody", at: { offset: 1.5 } })).toBe("FLEET_USAGE_INVALID");
    expect(await refused("gc", { ttlMs: 1, dryRun: "yes" })).toBe("FLEET_USAGE_INVALID");
    for (const method of CALL_NAMES.filter(
      (name) => !["servers", "sessions", "loaded", "activity", "samples", "tokenEnds", "verifyEvents"].includes(name),
    )) {
      expect(await refused(method, {}), `${method} without parameters`).toMatch(/^FLEET_USAGE_INVALID$/);
    }
    expect((await fleet.servers.list()).length, "nothing was started").toBe(0);
  });

  it("refuses a host token on its second use, at another host's front door, and after it has expired", async () => {
    const { token } = await issueHostToken(store, "h2", "h1");
    await RawClient.as(url(), token);
    await expect(RawClient.as(url(), token)).rejects.toThrow("AUTHENTICATION_FAILED");
    const elsewhere = await issueHostToken(store, "h2", "h3");
    await expect(RawClient.as(url(), elsewhere.token)).rejects.toThrow("valid once, at one front door");
    await store.tokens.delete(elsewhere.id);
    const late = await issueToken(store, "host:h2", 0, { role: "host", door: "h1", passing: true });
    await expect(RawClient.as(url(), late.token)).rejects.toThrow("AUTHENTICATION_FAILED");
    expect(await store.tokens.read(late.id)).not.toBeNull();
    await sweepTokens(store);
    expect(await store.tokens.read(late.id), "a left-over is swept").toBeNull();
  });

  it("accepts a host token exactly once when several connections present it at the same time", async () => {
    const { token } = await issueHostToken(store, "h2", "h1");
    const tries = await Promise.allSettled(Array.from({ length: 4 }, async () => await RawClient.as(url(), token)));
    expect(tries.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
  });

  it("is refused to a user's token, and no host token appears in the list of tokens", async () => {
    const { token, id } = await issueToken(store, "alice", 60_000);
    const hosts = await issueHostToken(store, "h2", "h1");
    expect((await listTokens(store)).map((each) => each.id)).toEqual([id]);
    expect(await revokeTokens(store, { user: "host:h2" })).toEqual([]);
    const raw = await RawClient.as(url(), token);
    expect((await raw.request("fleet.call", CALL)).error).toBeDefined();
    expect(events.some(({ event, user }) => event === "connected" && user === "alice")).toBe(true);
    await revokeTokens(store, { ids: [id, hosts.id] });
  });

  it("rejects a failed call with the error code and the suggestions of the called host", async () => {
    await beat();
    await using link = await ControlLink.open({ store, directory, config }, host());
    await expect(link.call("logEnd", { id: "nobody", lines: 1 }, { limitMs: 5_000 })).rejects.toMatchObject({
      code: "FLEET_NAME_NOT_FOUND",
      suggestions: expect.arrayContaining(["copilotfleet ps # lists servers"]),
    });
  });

  it("rejects an aborted call with the caller's reason, and closes the control connection when it is disposed", async () => {
    await beat();
    const { server } = await fleet.servers.spawn("bob");
    const { at } = await fleet.servers.logEnd(server.id, { lines: 0 });
    const before = events.filter(({ event }) => event === "closed").length;
    const stop = new AbortController();
    await using link = await ControlLink.open({ store, directory, config }, host());
    const waiting = link.call("moreLog", { id: server.id, at }, { limitMs: 60_000, signal: stop.signal });
    const reason = new Error("enough");
    setImmediate(() => stop.abort(reason));
    await expect(waiting).rejects.toBe(reason);
    await link[Symbol.asyncDispose]();
    await eventually(
      "the end of the connection",
      () => events.filter(({ event }) => event === "closed").length > before,
    );
  });

  it("rejects with FLEET_HOST_AWAY when the other host is gone or does not answer, and leaves no token", async () => {
    await expect(ControlLink.open({ store, directory, config }, host({ gone: true }))).rejects.toMatchObject({
      code: "FLEET_HOST_AWAY",
      exit: 7,
      suggestions: [
        expect.anything(),
        expect.stringMatching(/^copilotfleet serve # on host /),
        "Try again in a minute.",
      ],
    });
    const sockets: Socket[] = [];
    const deaf = createServer((socket) => void sockets.push(socket)).listen(0, "127.0.0.1");
    await eventually("the listener", () => deaf.listening);
    const address = deaf.address();
    const port = typeof address === "object" ? address?.port : 0;
    try {
      await expect(
        ControlLink.open({ store, directory, config }, host({ door: `127.0.0.1:${port}` })),
      ).rejects.toMatchObject({
        code: "FLEET_HOST_AWAY",
      });
      expect(await store.tokens.list(), "the token that it saw is good for nothing").toEqual([]);
    } finally {
      for (const socket of sockets) socket.destroy();
      deaf.close();
    }
  });

  it("rejects a call that exceeds its time limit, and logs no failure on the other host", async () => {
    await beat();
    const { server } = await fleet.servers.spawn("bob");
    const { at } = await fleet.servers.logEnd(server.id, { lines: 0 });
    const before = events.filter(({ event }) => event === "failed").length;
    await using link = await ControlLink.open({ store, directory, config }, host());
    await expect(link.call("moreLog", { id: server.id, at }, { limitMs: 50 })).rejects.toMatchObject({
      code: "FLEET_HOST_AWAY",
      exit: 7,
      message: expect.stringContaining('"moreLog" within 50 ms'),
    });
    expect(events.filter(({ event }) => event === "failed")).toHaveLength(before);
  });

  it("caps the time limit of a call about many servers at the longest possible timer", async () => {
    await beat();
    const other = new RemoteHost(host(), { store, directory, config: fleet.config, events: noEvents });
    const ids = Array.from({ length: 30 }, (_, index) => `nobody-${index}`);
    const nothing = { stopped: [], servers: [] };
    expect(await other.restartRolling({ ids, request: { drainTimeoutMs: 24 * 3_600_000 } })).toEqual(nothing);
    expect(await other.stop({ ids: [], request: { drainTimeoutMs: LONGEST_TIMER_MS } })).toEqual([]);
  });

  it("opens and closes normally even if the store fails to delete its token", async () => {
    const failing = altered(store, {
      tokens: { delete: async () => Promise.reject(new FleetError("FLEET_STORE_UNAVAILABLE", "No.")) },
    });
    const callers: Socket[] = [];
    const relay = createServer((socket) => {
      callers.push(socket);
      socket.pipe(connect(door.address.port, "127.0.0.1")).pipe(socket);
    }).listen(0, "127.0.0.1");
    await eventually("the relay", () => relay.listening);
    const address = relay.address();
    const port = typeof address === "object" ? address?.port : 0;
    try {
      const link = await ControlLink.open({ store: failing, directory, config }, host({ door: `127.0.0.1:${port}` }));
      expect(await link.call("loaded", {}, { limitMs: 5_000 })).toEqual([]);
      await link[Symbol.asyncDispose]();
      // An open connection would keep a command from exiting.
      await eventually("the end of the connection", () => callers.every(({ readableEnded }) => readableEnded));
      expect(callers).toHaveLength(1);
      // The store's error does not hide that the host is away.
      relay.close();
      const away = ControlLink.open({ store: failing, directory, config }, host({ door: "127.0.0.1:1" }));
      await expect(away).rejects.toMatchObject({ code: "FLEET_HOST_AWAY" });
    } finally {
      for (const socket of callers) socket.destroy();
      relay.close();
    }
  });

  it("rejects a waiting call when the other host leaves the directory during the call", async () => {
    await beat();
    const { id } = (await fleet.servers.spawn("bob")).server;
    const { at } = await fleet.servers.logEnd(id, { lines: 0 });
    await using link = await ControlLink.open({ store, directory, config }, host());
    const waiting = link.call("moreLog", { id, at }, { limitMs: 60_000 });
    const outcome = expect(waiting).rejects.toMatchObject({ code: "FLEET_HOST_AWAY" });
    const h1 = openStore(redis.url("control"), withStoreKey(join(folder, "state")), "h1");
    await h1.hosts?.leave(ensureNote(fleet.stateRoot, "h1").instance);
    await h1.close();
    await outcome;
  });
});
