import { execFile, spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Fleet } from "../../src/fleet/fleet.js";
import { eventually } from "../fixtures/eventually.js";
import { innerPidOf } from "../fixtures/processes.js";
import { unused } from "../fixtures/sessions/unused.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

describe("the front door, when a client connects,", () => {
  let at: DoorFleet;
  let token: string;
  beforeAll(async () => {
    at = await DoorFleet.open({ config: { serve: { maxFrame: "64kb" } } });
    token = await at.token("alice");
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
  });

  it("admits a client only with a user's token, and reveals neither this token nor the server's connection token", async () => {
    const client = await RawClient.as(at.url, token);
    expect(await client.request("ping", { message: "x" })).toMatchObject({ result: { message: "pong: x" } });
    expect(at.events).toContainEqual({ event: "connected", address: "127.0.0.1", user: "alice" });
    expect(JSON.stringify(at.events)).not.toContain(token.slice(-43));
    const info = await at.fleet.clients.connectInfo("alice");
    expect(JSON.stringify(client.received)).not.toContain(info.token);
    const direct = await RawClient.open(at.url);
    expect(await direct.request("connect", { token: info.token })).toMatchObject({ error: { code: -32002 } });
  });

  it("refuses a client without a valid token with the runtime's own error message, and closes the connection", async () => {
    for (const params of [{}, { token: "wrong" }, { token: null }, { token: [token] }]) {
      const client = await RawClient.open(at.url);
      const answer = await client.request("connect", params);
      expect(answer.error).toEqual({ code: -32002, message: "AUTHENTICATION_FAILED" });
      await client.end();
    }
    const early = await RawClient.open(at.url);
    early.send({ id: 1, method: "session.list", params: {} });
    early.send({ id: 2, method: "connect", params: { token } });
    expect((await early.answerTo(1)).error).toEqual({ code: -32001, message: "AUTHENTICATION_REQUIRED" });
    await early.end();
    expect(early.received.filter(({ id }) => id === 2)).toEqual([]);
  });

  it("answers requests that a client sends before the front door has answered the client's connect", async () => {
    const client = await RawClient.open(at.url);
    client.send({ id: 1, method: "connect", params: { token } });
    client.send({ id: 2, method: "ping", params: { message: "early" } });
    expect(await client.answerTo(2)).toMatchObject({ result: { message: "pong: early" } });
    const answer = await client.answerTo(1);
    expect((await client.request("connect", { token })).result).toEqual(answer.result);
    const other = await at.token("bob");
    expect(await client.request("connect", { token: other })).toMatchObject({ error: { code: -32002 } });
    expect(at.events).toContainEqual(expect.objectContaining({ event: "token-refused", user: "alice" }));
    expect(await client.request("ping", { message: "still alice" })).toMatchObject({ result: {} });
  });

  it("limits the size of a client's frames, and allows less before the client's connect than after it", async () => {
    const stranger = await RawClient.open(at.url);
    stranger.bytes("Content-Length: 20000\r\n\r\n");
    await stranger.end();
    const client = await RawClient.as(at.url, token);
    expect(await client.request("ping", { message: "x".repeat(40_000) })).toMatchObject({ result: {} });
    client.frame(JSON.stringify({ jsonrpc: "2.0", id: 1, method: "ping", params: { message: "x".repeat(70_000) } }));
    expect(await client.answerTo(null)).toMatchObject({
      error: { code: -32700, message: expect.stringContaining("65536") },
    });
    await client.end();
  });

  it("closes a client's connection when its token is revoked", async () => {
    const issued = await at.fleet.tokens.issue("bob");
    const client = await RawClient.as(at.url, issued.token);
    await at.fleet.tokens.revoke({ ids: [issued.id] });
    await eventually("the end of the connection", () => client.closed);
    const again = await RawClient.open(at.url);
    expect((await again.request("connect", { token: issued.token })).error?.code).toBe(-32002);
  });

  it("answers a client's connect with the reason when its user's server cannot be started", async () => {
    await using broken = await DoorFleet.open({ config: { runtime: { path: "/bin/false" } } });
    const client = await RawClient.open(broken.url);
    const answer = await client.request("connect", { token: await broken.token("alice") });
    expect(answer.error).toMatchObject({
      code: -32003,
      data: { code: expect.stringMatching(/^FLEET_(RUNTIME|SERVER)_/) },
    });
    await client.end();
  });

  it("refuses a client that names another protocol version, with an error that names the SDK that fits", async () => {
    await using fresh = await DoorFleet.open();
    const client = await RawClient.open(fresh.url);
    const answer = await client.request("connect", { token: await fresh.token("alice"), protocolVersion: 4 });
    expect(answer.error).toMatchObject({
      message: expect.stringMatching(
        /speaks version 3 .* the client speaks version 4\. Version 3 is spoken by SDK 1\.x/,
      ),
      data: { code: "FLEET_PROTOCOL_UNSUPPORTED" },
    });
    await client.end();
    expect(await fresh.fleet.servers.list()).toEqual([]);
  });

  it("starts a user's server for a second client even if the client that first needed the server hangs up", async () => {
    await using fresh = await DoorFleet.open();
    const own = await fresh.token("ann");
    const [first, second] = [await RawClient.open(fresh.url), await RawClient.open(fresh.url)];
    for (const client of [first, second]) client.send({ id: 1, method: "connect", params: { token: own } });
    await eventually("the start", async () => (await fresh.fleet.servers.list()).length > 0);
    first.socket.destroy();
    expect(await second.answerTo(1)).toMatchObject({ result: { protocolVersion: 3 } });
    expect(fresh.events.map(({ event }) => event)).not.toContain("failed");
  });
});

describe("the front door, while a client is connected,", () => {
  it("unloads a client's session from the server when the client's connection ends", async () => {
    await using at = await DoorFleet.open();
    const client = await RawClient.as(at.url, await at.token("alice"));
    await client.requestOk("session.create", { sessionId: "s" });
    await client.turnOk("s", "hi");
    const active = async () => (await at.fleet.servers.ofUser("alice")).activeSessions;
    expect(await active()).toBe(1);
    client.socket.destroy();
    await eventually("the session is unloaded", async () => (await active()) === 0);
    expect(at.door.clients).toBe(0);
  });

  it("stops reading from a user's server while the user's client does not read, to limit memory use", async () => {
    await using at = await DoorFleet.open();
    const client = await RawClient.as(at.url, await at.token("alice"));
    await client.requestOk("session.create", { sessionId: "s", streaming: true });
    await client.turnOk("s", "!words 2000");
    client.socket.pause();
    const before = process.memoryUsage().rss;
    for (let id = 0; id < 400; id++) client.send({ id, method: "session.getMessages", params: { sessionId: "s" } });
    const lively = await RawClient.as(at.url, await at.token("bob"));
    for (let count = 0; count < 20; count++) expect((await lively.request("ping", {})).error).toBeUndefined();
    expect(process.memoryUsage().rss - before).toBeLessThan(300 * 1024 * 1024);
    client.socket.resume();
    for (let id = 0; id < 400; id++) expect((await client.answerTo(id)).error).toBeUndefined();
  });
});

it("the front door records a fork as a private session of the client's user, and counts one turn for it", async () => {
  await using at = await DoorFleet.open();
  const client = await RawClient.as(at.url, await at.token("alice"), true);
  await client.requestOk("session.create", { sessionId: "trunk" });
  await client.turnOk("trunk", "hi");
  const { result } = await client.request("sessions.fork", { sessionId: "trunk" });
  const { sessionId } = result as { sessionId: string };
  expect(await at.store.sessions.read(sessionId)).toMatchObject({ owner: "alice", kind: "private", turns: 1 });
  client.socket.destroy();
});

it("the front door resumes an unloaded session without turns even if a stale lock file marks it as loaded", async () => {
  await using at = await DoorFleet.open();
  const client = await RawClient.as(at.url, await at.token("alice"), true);
  await client.requestOk("session.create", { sessionId: "bare" });
  await client.requestOk("session.detach", { sessionId: "bare" });
  const { home, pid } = await at.serverOf("alice");
  const folder = join(home, "session-state", "bare");
  // The session looks loaded on disk, but the server can no longer open it.
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, `inuse.${innerPidOf(pid)}.lock`), "");
  expect(await client.request("session.resume", { sessionId: "bare" })).toMatchObject({
    result: { sessionId: "bare" },
  });
  expect(await client.turn("bare", "hi")).toMatchObject({ result: {} });
  client.socket.destroy();
});

async function begun(client: RawClient, ...ids: string[]): Promise<void> {
  for (const sessionId of ids) {
    expect((await client.request("session.create", { sessionId })).error).toBeUndefined();
    expect((await client.turn(sessionId, "hi")).error).toBeUndefined();
  }
}

it("the front door deletes in bulk only the sessions that the user may delete, together with their records", async () => {
  await using at = await DoorFleet.open();
  const alice = await RawClient.as(at.url, await at.token("alice"));
  const mallory = await RawClient.as(at.url, await at.token("mallory"));
  await begun(alice, "secret", "locked", "old");
  await begun(mallory, "mallorys");
  const lease = await at.fleet.leases.acquire("locked", { user: "alice" });
  const sessionIds = ["secret", "locked", "old", "mallorys"];
  const foreign = await mallory.request("sessions.bulkDelete", { sessionIds: ["secret", "nobodys"] });
  expect(foreign.result).toEqual({ freedBytes: { secret: 0, nobodys: 0 } });
  expect(await at.store.sessions.read("secret")).not.toBeNull();

  const { result } = await alice.request("sessions.bulkDelete", { sessionIds });
  expect(result).toEqual({ freedBytes: { secret: expect.any(Number), old: expect.any(Number), mallorys: 0 } });
  expect(at.events).toContainEqual(
    expect.objectContaining({ event: "denied", sessionId: "locked", code: "FLEET_SESSION_LOCKED", user: "alice" }),
  );
  expect((await at.store.sessions.list()).map(({ id }) => id).sort()).toEqual(["locked", "mallorys"]);

  const pruned = await alice.request("sessions.pruneOld", { olderThanDays: 0, includeNamed: true });
  expect(pruned.result).toMatchObject({ deleted: [], skipped: ["locked"], freedBytes: 0 });
  await lease.release();
  const again = await alice.request("sessions.pruneOld", { olderThanDays: 0, includeNamed: true });
  expect(again.result).toMatchObject({ deleted: ["locked"], skipped: [] });
  expect((await at.store.sessions.list()).map(({ id }) => id)).toEqual(["mallorys"]);
});

it("the front door refuses to delete sessions in bulk on a shared server", async () => {
  await using at = await DoorFleet.open({ config: { isolation: "shared" } });
  const alice = await RawClient.as(at.url, await at.token("alice"));
  await begun(alice, "kept");
  const denied = { error: { code: -32003, data: { code: "FLEET_METHOD_DENIED" } } };
  expect(await alice.request("sessions.bulkDelete", { sessionIds: ["kept"] })).toMatchObject(denied);
  expect(await alice.request("sessions.pruneOld", { olderThanDays: 0 })).toMatchObject(denied);
  expect(await at.store.sessions.read("kept")).not.toBeNull();
});

it("closing the front door records every turn of its clients", async () => {
  await using at = await DoorFleet.open();
  const client = await RawClient.as(at.url, await at.token("ann"));
  await client.requestOk("session.create", { sessionId: "s" });
  await client.turnOk("s", "one");
  await client.turnOk("s", "two");
  const beforeLastMs = Date.now();
  await client.turnOk("s", "three");
  await at.door.close({ timeout: 20_000 });
  const record = await at.store.sessions.read("s");
  expect(record).toMatchObject({ turns: 3 });
  expect(Date.parse(record?.lastUsedAt ?? "")).toBeGreaterThanOrEqual(beforeLastMs);
});

it("closing the library's Fleet object records every turn that the program ran", async () => {
  await using at = await DoorFleet.open();
  const config = { ports: at.ports, provider: { type: "echo" as const } };
  const library = await Fleet.open({ env: at.env, cwd: at.folder, config });
  const session = await library.sessions.create({ user: "ann", sessionId: "s" });
  for (const prompt of ["one", "two", "three"]) await library.sessions.send(session, prompt);
  await library.close();
  expect(await at.store.sessions.read("s")).toMatchObject({ turns: 3 });
});

it("the list of sessions shows the time of a turn that has just ended in the same process", async () => {
  await using at = await DoorFleet.open();
  const session = await at.fleet.sessions.create({ user: "ann", sessionId: "s" });
  for (const prompt of ["one", "two"]) await at.fleet.sessions.send(session, prompt);
  const beforeLastMs = Date.now();
  await at.fleet.sessions.send(session, "three");
  const [listed] = await at.fleet.sessions.list({ user: "ann" });
  expect(Date.parse(listed?.lastUsedAt ?? "")).toBeGreaterThanOrEqual(beforeLastMs);
  const shown = await at.fleet.sessions.get("s", { user: "ann" });
  expect(Date.parse(shown.lastUsedAt)).toBeGreaterThanOrEqual(beforeLastMs);
});

describe("the front door, for a client of a shared server whose session was deleted or evicted,", () => {
  let at: DoorFleet;
  beforeAll(async () => {
    at = await DoorFleet.open({ config: { isolation: "shared" } });
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
  });

  const lives = ({ received }: RawClient, id: string) =>
    received.flatMap(({ method, params }) =>
      method === "session.lifecycle" && params?.sessionId === id ? [String(params.type)] : [],
    );

  it.each(["loaded", "evicted"])(
    "sends the client no event of another user's new session with the same id (old session: %s)",
    async (how) => {
      const id = unused("namesake");
      const listener = await RawClient.as(at.url, await at.token("ann"));
      await listener.requestOk("session.create", { sessionId: id });
      await listener.turnOk(id, "hello");
      if (how === "evicted") {
        await eventually("the eviction", async () => (await at.fleet.sessions.evict({ ids: [id] })).evicted.length > 0);
      }
      await at.fleet.sessions.delete([id]);
      await eventually("it is told", () => lives(listener, id).includes("session.deleted"));
      // All other events about the deletion arrive before the answer to this ping.
      await listener.requestOk("ping");
      const before = listener.received.length;
      const other = await RawClient.as(at.url, await at.token("bob"));
      expect(await other.request("session.create", { sessionId: id })).toMatchObject({ result: { sessionId: id } });
      await other.turnOk(id, "a secret");
      // All events that the server sends to all clients arrive before the answer to this ping.
      await listener.requestOk("ping");
      expect(listener.received.slice(before).filter(({ params }) => params?.sessionId === id)).toEqual([]);
      expect(lives(other, id)).toContain("session.created");
    },
  );
});

const SCRIPT = fileURLToPath(new URL("../fixtures/sessions/client.py", import.meta.url));

const hasPython = spawnSync("python3", ["--version"], { stdio: "ignore" }).status === 0;
if (!hasPython) console.warn("the client in Python is skipped: there is no python3");

it.skipIf(!hasPython)("the front door serves a Python client that uses only sockets and no SDK", async () => {
  await using at = await DoorFleet.open();
  const token = await at.token("zoë");
  const running = promisify(execFile)("python3", [SCRIPT, at.url], { timeout: 30_000 });
  running.child.stdin?.end(`${token}\n`);
  const { stdout } = await running;
  expect(JSON.parse(stdout)).toEqual({
    protocolVersion: 3,
    replies: ["you said: hello", "tool said: python says früh", "you said: and again"],
    prompts: 3,
    refused: "FLEET_METHOD_DENIED",
  });
  expect(await at.store.sessions.read("from-python")).toBeNull();
});

it.skipIf(process.platform !== "linux")(
  "a server and its agent's programs have the score 500, above that of serve",
  async () => {
    await using at = await DoorFleet.open({ config: { session: { host: "owner" } } });
    const client = await RawClient.as(at.url, await at.token("alice"));
    await client.requestOk("session.create", { sessionId: "s" });
    const { pid, home } = await at.serverOf("alice");
    expect(readFileSync(`/proc/${pid}/oom_score_adj`, "utf8")).toBe("500\n");
    const out = join(home, "score");
    await client.requestOk("session.shell.exec", { sessionId: "s", command: `cat /proc/self/oom_score_adj > ${out}` });
    const written = () => {
      try {
        return readFileSync(out, "utf8") || false;
      } catch {
        return false; // not yet
      }
    };
    expect(await eventually("the score", written)).toBe("500\n");
    expect(Number(readFileSync("/proc/self/oom_score_adj", "utf8"))).toBeLessThan(500);
  },
);
