import { appendFile, mkdtemp, realpath } from "node:fs/promises";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { HostRecord } from "../../src/base/host.js";
import type { FrontDoor } from "../../src/door/door.js";
import type { DoorEvent } from "../../src/door/state/report.js";
import { Fleet } from "../../src/fleet/fleet.js";
import { ControlLink } from "../../src/hosts/calls/control-link.js";
import { CALL_NAMES } from "../../src/hosts/calls/rpc-table.js";
import { issueHostToken, issueToken, listTokens, revokeTokens, sweepTokens } from "../../src/identity/tokens.js";
import { HostDirectory } from "../../src/servers/directory.js";
import type { Store } from "../../src/store/store.js";
import { openStore } from "../../src/store/store.js";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import { portVariables, testPorts } from "../fixtures/fleets/ports.js";
import { removeFolder } from "../fixtures/remove-folder.js";
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
    store = openStore(url, withStoreKey(join(folder, "other")), { host: "h2" });
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

  it("gets the answer to its call from a front door that closes", async () => {
    const { server } = await fleet.servers.spawn("bob");
    const { at, log } = await fleet.servers.logEnd(server.id, { lines: 0 });
    const closing = await fleet.doors.open({ listen: { host: "127.0.0.1", port: 0 } });
    const { token } = await issueHostToken(store, "h2", "h1");
    const raw = await RawClient.as(`127.0.0.1:${closing.address.port}`, token);
    raw.send({
      id: "more",
      method: "fleet.call",
      params: { ...CALL, method: "moreLog", params: { id: server.id, at } },
    });
    await raw.request("ping");
    const closed = closing.close({ timeout: 40_000 });
    await appendFile(log, "words\n");
    expect((await raw.answerTo("more")).result).toMatchObject({ bytes: expect.any(String) });
    expect(await closed).toEqual({ cut: 0 });
    await raw.end();
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
});
