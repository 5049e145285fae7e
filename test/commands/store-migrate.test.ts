import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { UsageReport } from "../../src/accounts/ledger.js";
import type { Lease } from "../../src/base/session.js";
import type { MigrateResult } from "../../src/fleet/migrate.js";
import { ownIdentity } from "../../src/runtime/process/process-table.js";
import type { ServerView } from "../../src/servers/server.js";
import { isEmpty, readContents, sessionsIn } from "../../src/store/copy.js";
import { LIMITS } from "../../src/store/limits.js";
import { SESSIONS } from "../../src/store/sessions.js";
import { openStore, type Store } from "../../src/store/store.js";
import { TestFleet } from "../fixtures/commands/cli.js";
import type { RunOptions } from "../fixtures/commands/command.js";
import { Terminal } from "../fixtures/commands/terminal.js";
import { unused } from "../fixtures/sessions/unused.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { sessionRecord } from "../fixtures/store/store-records.js";

const HOST = "h1";
const problem = redisProblem();
if (problem !== undefined) console.warn(`store migrate is not tested: ${problem}`);

describe.skipIf(problem !== undefined)("store migrate", () => {
  let redis: RedisServer;
  let fleet: TestFleet;
  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(() => redis.end());
  beforeEach(() => {
    fleet = new TestFleet({ COPILOTFLEET_HOST_NAME: HOST });
  });
  // end() stops only servers in the file store. The test that moves a server to Redis also moves it back to the files.
  afterEach(() => fleet.end());

  async function contents(url: string) {
    return await using_(url, (store) => readContents(store));
  }

  async function using_<T>(url: string, work: (store: Store) => Promise<T>): Promise<T> {
    const store = openStore(url, fleet.root, { host: HOST });
    try {
      return await work(store);
    } finally {
      await store.close();
    }
  }

  it("store migrate moves a fleet to Redis and back while its server runs", async () => {
    const url = redis.url();
    const server = await fleet.spawn("alice");
    expect(await fleet.ok(["create", "--user", "alice", "--id", "notes", "--prompt", "one"])).toBe(
      "notes\n[turn 1] one\n",
    );
    const token = (await fleet.ok(["lock", "notes", "--user", "alice"])).trim();
    const { lease } = await fleet.json<{ lease: Lease }>(["lock", "notes", "--show"]);
    await fleet.ok(["unlock", "notes", "--token", token]);
    await fleet.ok(["limit", "set", "--user", "alice", "--sessions", "7"]);
    const usage = async (at?: RunOptions) => await fleet.json<UsageReport>(["usage", "--by", "session"], at);
    const used = await usage();
    expect(used.usage).toMatchObject([{ key: "notes", turns: 1 }]);
    const before = await contents("file");
    expect([...(before.records.get(LIMITS)?.values() ?? [])]).toEqual([
      { user: "alice", limits: { sessions: 7 }, groups: [] },
    ]);
    expect(before.highestFence).toBeGreaterThanOrEqual(lease.fence);

    const moved = await fleet.json<MigrateResult>(["store", "migrate", "--to", url]);
    expect(moved).toEqual({
      from: "file",
      to: url,
      servers: 1,
      sessions: 1,
      tokens: 0,
      highestFence: before.highestFence,
      setting: { store: url },
      warnings: [],
    });
    expect(await contents("file")).toEqual(before);
    // In Redis, the record of a session names its host. Fences follow the clock, so that none needs to be copied.
    expect(await contents(url)).toEqual({
      ...before,
      highestFence: 0,
      records: new Map(before.records).set(
        SESSIONS,
        new Map(sessionsIn(before).map((session) => [session.id, { ...session, host: HOST }])),
      ),
    });

    const env = { COPILOTFLEET_STORE: url };
    expect((await usage({ env })).usage).toEqual(used.usage);
    const { servers } = await fleet.json<{ servers: ServerView[] }>(["ps"], { env });
    expect(servers).toMatchObject([{ id: server.id, pid: server.pid, state: "ready" }]);
    expect(await fleet.ok(["send", "notes", "two", "--user", "alice"], { env })).toBe("[turn 2] two\n");
    const held = await fleet.json<{ lease: Lease & { token: string } }>(["lock", "notes", "--user", "alice"], { env });
    expect(held.lease.fence).toBeGreaterThan(lease.fence);

    // A lease that is held in Redis prevents the migration.
    expect(await fleet.refusal(5, ["store", "migrate", "--to", "file"], { env })).toMatchObject({
      code: "FLEET_SESSION_LOCKED",
      message: expect.stringContaining('"notes"'),
    });
    await fleet.ok(["unlock", "notes", "--token", held.lease.token], { env });
    const occupied = await fleet.refusal(5, ["store", "migrate", "--to", "file"], { env });
    expect(occupied).toMatchObject({ code: "FLEET_TARGET_EXISTS" });
    await promisify(execFile)("sh", ["-ec", occupied.suggestions[0] ?? "false"]);

    const note = { user: "~alice-1", begunAt: new Date().toISOString(), pending: ["h2"], partlyDone: true as const };
    await using_(url, async (store) => await store.purges.begin(note));
    const there = await contents(url);
    const back = ["store", "migrate", "--to", "file"];
    const { stdout: text, stderr } = await fleet.run(back, { env });
    expect(stderr.trimEnd().split("\n")).toEqual([
      expect.stringMatching(/^Warning: The ledger stays in "redis:.*budgets of tokens begin again\.$/),
      expect.stringMatching(/^Warning: The records of purges for hosts that are gone \("h2"\) stay in "redis:/),
    ]);
    expect((await contents("file")).records.get(LIMITS)).toEqual(before.records.get(LIMITS));
    expect(text).toMatch(/^Copied 1 server and 1 session from redis:.* to file\.\n/);
    expect(text).toContain('Set "store": "file"');
    expect(await contents(url)).toEqual(there);
    expect(await fleet.ok(["send", "notes", "three", "--user", "alice"])).toBe("[turn 3] three\n");
    const last = await fleet.json<{ lease: Lease & { token: string } }>(["lock", "notes", "--user", "alice"]);
    expect(last.lease.fence).toBeGreaterThan(held.lease.fence);
    await fleet.ok(["unlock", "notes", "--token", last.lease.token]);
  });

  it("store migrate refuses while the data of a user is being erased, and copies nothing", async () => {
    const url = redis.url();
    const purge = { user: "alice", begunAt: new Date().toISOString(), pending: [null] };
    await using_("file", async (store) => await store.purges.begin(purge));
    expect(await fleet.refusal(5, ["store", "migrate", "--to", url])).toMatchObject({
      code: "FLEET_PURGE_UNDER_WAY",
      message: 'The data of user "alice" is being erased.',
    });
    expect(isEmpty(await contents(url))).toBe(true);
  });

  it("store migrate refuses a target that is not empty, and does not change it", async () => {
    const url = redis.url();
    await using_(url, (store) => store.sessions.create(sessionRecord("somebody")));
    const before = await contents(url);
    const error = await fleet.refusal(5, ["store", "migrate", "--to", url]);
    expect(error).toMatchObject({ code: "FLEET_TARGET_EXISTS", message: expect.stringContaining(url) });
    expect(await contents(url)).toEqual(before);
  });

  it("store migrate on a terminal shows its progress when it takes more than a second", async () => {
    const url = redis.url();
    await using_(url, (store) => store.sessions.create(sessionRecord("somebody")));
    process.kill(redis.pid, "SIGSTOP");
    try {
      await using terminal = new Terminal(fleet, ["store", "migrate", "--to", url]);
      await terminal.line(/^\S Copying records \(\d+ s\)$/);
      process.kill(redis.pid, "SIGCONT");
      expect(await terminal.done).toBe(5);
      expect(terminal.screen).toMatchObject({ column: 0, isCursorVisible: true });
      expect(terminal.screen.lines[0]).toMatch(/^Error: The store/);
    } finally {
      process.kill(redis.pid, "SIGCONT");
    }
  });

  it("store migrate refuses while a process on this or another host changes the state of a server", async () => {
    const target = unused("moving");
    const url = redis.url(target);
    await fleet.spawn("alice");
    const claim = (value: typeof ownIdentity extends () => infer T ? T | null : never) =>
      using_("file", (store) =>
        store.registry.update(({ servers }) => {
          for (const server of Object.values(servers)) server.claim = value;
        }),
      );
    for (const identity of [ownIdentity(), { ...ownIdentity(), bootId: "of another host" }]) {
      await claim(identity);
      expect(await fleet.refusal(5, ["store", "migrate", "--to", url])).toMatchObject({
        code: "FLEET_SERVER_CONFLICT",
        message: expect.stringContaining("alice-"),
      });
    }
    await claim(null);
    expect(await redis.client.keys(`copilotfleet:{${target}}:*`)).toEqual([]);
  });

  it("store migrate reports a Redis that refuses the user or cannot be reached, and shows no password", async () => {
    const env = { COPILOTFLEET_STORE_OPTIONS_PASSWORD: '{"env":"PASSWORD"}', PASSWORD: "canary" };
    const to = `redis://nobody@127.0.0.1:${redis.port}/0?fleet=secret`;
    const ran = await fleet.run(["store", "migrate", "--to", to], { env });
    expect(ran.code).toBe(3);
    expect(ran.stdout + ran.stderr).toMatch(/does not let this user in/);
    expect(ran.stdout + ran.stderr).not.toContain("canary");
    const error = await fleet.refusal(7, ["store", "migrate", "--to", "redis://127.0.0.1:1/0"]);
    expect(error).toMatchObject({ code: "FLEET_STORE_UNAVAILABLE", message: expect.stringContaining("127.0.0.1:1 ") });
  });
});
