import { execFile } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import type { Lease } from "../../src/base/session.js";
import type { Check } from "../../src/fleet/doctor/checks.js";
import type { ServerView } from "../../src/servers/server.js";
import type { SessionView } from "../../src/sessions/view.js";
import { TestFleet } from "../fixtures/commands/cli.js";
import { Terminal } from "../fixtures/commands/terminal.js";
import { eventually } from "../fixtures/eventually.js";
import { unused } from "../fixtures/sessions/unused.js";
import { Stopwatch } from "../fixtures/stopwatch.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";

/** The time within which a command must end: 5 s as promised, plus its start and the delay of a busy machine. */
const BOUND_MS = 6_900;
/** The checks that doctor cannot make without the store. */
const SKIPPED =
  "damage,registry,sessions,purges,servers,sandboxes,stray processes,pool,serve,events,tokens,ports,hosts".split(",");
/** How much longer `doctor` may take, because it also tries the runtime. */
const TRIAL_MS = 2_500;
const PASSWORD = "canary-of-redis";
const CREDENTIALS = { COPILOTFLEET_STORE_OPTIONS_PASSWORD: '{"env":"REDIS_PASSWORD"}', REDIS_PASSWORD: PASSWORD };
const problem = redisProblem();
if (problem !== undefined) console.warn(`the command on Redis is not tested: ${problem}`);

/** Runs commands with a Redis that needs a password. The last test searches all output and files for the password. */
describe.skipIf(problem !== undefined)("the fleet on Redis", () => {
  let redis: RedisServer;
  let fleet: TestFleet;
  const printed: string[] = [];

  beforeAll(async () => {
    [redis, fleet] = await started();
    expect(await json(["ps"])).toMatchObject({ servers: [] });
  });
  afterAll(() => ended(redis, fleet));

  async function started(): Promise<[RedisServer, TestFleet]> {
    const server = await RedisServer.start();
    await server.client.config("SET", "requirepass", PASSWORD);
    return [server, new TestFleet({ COPILOTFLEET_STORE: server.url("f"), ...CREDENTIALS })];
  }

  async function ended(server: RedisServer, onIt: TestFleet): Promise<void> {
    try {
      await onIt.end();
    } finally {
      await server.end();
    }
  }

  async function json<T>(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<T> {
    const ran = await fleet.run([...args, "--json"], { env });
    printed.push(ran.stdout, ran.stderr);
    expect({ code: ran.code, stderr: ran.stderr, stdout: ran.stdout }, args.join(" ")).toMatchObject({
      code: 0,
      stderr: "",
    });
    return ran.json<T>();
  }

  it("a session on Redis continues after a crash of its server, and is refused to other users", async () => {
    const [user, id] = [unused("alice"), unused("notes")];
    const { session, reply } = await json<{ session: SessionView; reply: string }>([
      ...["create", "--user", user, "--id", id, "--prompt", "one"],
    ]);
    expect({ owner: session.owner, reply }).toEqual({ owner: user, reply: "[turn 1] one" });
    const { servers } = await json<{ servers: ServerView[] }>(["ps"]);
    const own = servers.filter((server) => server.user === user);
    expect(own).toMatchObject([{ user, state: "ready" }]);
    process.kill(own[0]?.pid ?? 0, "SIGKILL");
    await eventually("the death", async () => (await fleet.server(user)).state === "failed");
    expect(await json(["send", id, "two", "--user", user])).toMatchObject({ reply: "[turn 2] two" });
    expect(await fleet.refusal(4, ["send", id, "x", "--user", "mallory"])).toMatchObject({
      code: "FLEET_SESSION_NOT_FOUND",
    });
  });

  it("lock, spawn --count, list, doctor, gc and stop work on Redis", async () => {
    const [user, id, old] = [unused("alice"), unused("notes"), unused("old")];
    await json(["create", "--user", user, "--id", id]);
    const { lease } = await json<{ lease: Lease & { token: string } }>(["lock", id, "--user", user]);
    expect(await json(["lock", id, "--show"])).toMatchObject({ lease: { holder: user, fence: lease.fence } });
    await json(["unlock", id, "--token", lease.token]);
    const many = await json<{ servers: ServerView[] }>(["spawn", "--user", "team", "--count", "4"]);
    expect(new Set(many.servers.map(({ port }) => port)).size).toBe(4);
    const listed = await json<{ sessions: SessionView[] }>(["list", "--user", user]);
    expect(listed.sessions.map((session) => session.id)).toEqual([id]);
    const known = async () =>
      (await json<{ servers: ServerView[] }>(["ps"])).servers.map((server) => [server.user, server.state]);
    const before = await known();
    const ready = before.filter(([, state]) => state === "ready");
    expect(ready.map(([name]) => name)).toEqual(expect.arrayContaining([user, "team-1", "team-2", "team-3", "team-4"]));
    expect(await json<{ ok: boolean }>(["doctor"])).toMatchObject({ ok: true });
    expect(await known(), "doctor tries a server out, and leaves no record of it").toEqual(before);
    await json(["create", "--user", user, "--id", old, "--ttl", "1ms"]);
    const collected = await json<{ deleted: { id: string }[] }>(["gc", "--ttl", "24h"]);
    expect(collected.deleted.map((session) => session.id)).toEqual([old]);
    const { stopped } = await json<{ stopped: unknown[] }>(["stop", "--all"]);
    expect(stopped).toHaveLength(ready.length);
  });

  it("a session on Redis takes 12 prompts at once from 12 processes, one turn at a time", async () => {
    const id = unused("crowded");
    await json(["create", "--user", "alice", "--id", id]);
    const prompts = Array.from({ length: 12 }, (_, index) => `p${index}`);
    const args = ["--user", "alice", "--wait", "3m"];
    const replies = await Promise.all(
      prompts.map((prompt) => fleet.ok(["send", id, prompt, ...args], { ownProcess: true })),
    );
    const turns = replies.map((reply, index) => {
      const [, turn, text] = /^\[turn (\d+)\] (.*)\n$/.exec(reply) ?? [];
      expect(text).toBe(prompts[index]);
      return Number(turn);
    });
    expect(turns.toSorted((a, b) => a - b)).toEqual(prompts.map((_, index) => index + 1));
    await fleet.ok(["stop", "--all"]);
  });

  it("ps and doctor report in time that Redis does not answer or refuses them, and name the address of Redis", async () => {
    redis.signal("SIGSTOP");
    using took = new Stopwatch();
    try {
      const error = await fleet.refusal(7, ["ps"]);
      printed.push(JSON.stringify(error));
      expect(error).toMatchObject({
        code: "FLEET_STORE_UNAVAILABLE",
        message: expect.stringContaining(`127.0.0.1:${redis.port}`),
      });
      expect(took.ms).toBeLessThan(BOUND_MS);
      using examined = new Stopwatch();
      const { code, stdout } = await fleet.run(["doctor", "--json"]);
      printed.push(stdout);
      expect(code).toBe(7);
      const { checks } = JSON.parse(stdout) as { checks: Check[] };
      // The checks that need the registry are skipped, because each of them would wait for Redis again.
      expect(checks.filter(({ ok }) => !ok)).toMatchObject([
        {
          name: "store",
          level: "failed",
          detail: expect.stringContaining(`Redis at 127.0.0.1:${redis.port} does not answer`),
        },
        ...SKIPPED.map((name) => ({ name, level: "skipped" })),
      ]);
      expect(examined.ms).toBeLessThan(BOUND_MS + TRIAL_MS);
    } finally {
      redis.signal("SIGCONT");
    }
    using before = new Stopwatch();
    const nobody = await fleet.refusal(7, ["ps"], {
      env: { COPILOTFLEET_STORE: `redis://127.0.0.1:1/0` },
    });
    expect(nobody).toMatchObject({ code: "FLEET_STORE_UNAVAILABLE", message: expect.stringContaining("127.0.0.1:1 ") });
    // Nothing listens at this address, so ps fails before the time limit for an answer.
    expect(before.ms).toBeLessThan(4_900);
    const stranger = await fleet.refusal(3, ["ps"], { env: { COPILOTFLEET_STORE_OPTIONS_PASSWORD: "null" } });
    expect(stranger).toMatchObject({ code: "FLEET_STORE_UNUSABLE" });
    const unknown = await fleet.refusal(3, ["ps"], {
      env: { COPILOTFLEET_STORE: `redis://127.0.0.1:${redis.port}/99` },
    });
    expect(unknown).toMatchObject({
      code: "FLEET_CONFIG_INVALID",
      message: expect.stringContaining(`"store" names "redis://127.0.0.1:${redis.port}/99"`),
    });
    printed.push(JSON.stringify([nobody, stranger, unknown]));
  });

  it("after Redis lost its data, no command starts a second server on a home until an operator decides what to do", async () => {
    const [server, lost] = await started();
    onTestFinished(() => ended(server, lost));
    const { pid } = await lost.spawn("alice");
    await server.client.flushall();
    const errors = await Promise.all(
      [["ps"], ["spawn", "--user", "alice"], ["send", "notes", "x", "--user", "alice"]].map((args) =>
        lost.refusal(7, args),
      ),
    );
    for (const error of errors) expect(error).toMatchObject({ code: "FLEET_STATE_LOST" });
    printed.push(JSON.stringify(errors));
    expect(lost.servers()).toEqual([pid]);
    const [, command = "false"] = /^(mv .*)$/m.exec(errors[0]?.suggestions.join("\n") ?? "") ?? [];
    const bin = join(lost.folder, "bin");
    await promisify(execFile)("sh", [
      "-ec",
      `mkdir -p ${bin}; ln -s ${join(process.cwd(), "bin/run.js")} ${bin}/copilotfleet`,
    ]);
    const env = { ...lost.env, PATH: `${bin}:${lost.env.PATH}` };
    const { stdout } = await promisify(execFile)("sh", ["-ec", command], { env, cwd: lost.folder });
    printed.push(stdout);
    await eventually("the end of what nobody knows any more", () => lost.processes().length === 0);
    expect(await lost.json(["ps"])).toMatchObject({ servers: [] });
    expect(await lost.spawn("alice")).toMatchObject({ state: "ready" });
  });

  it("commands on a terminal show their progress while Redis does not answer", async () => {
    process.kill(redis.pid, "SIGSTOP");
    try {
      for (const [args, line] of [
        [["ps"], /Reading the list \(\d+ s\)/],
        [["top", "--once"], /Reading the list \(\d+ s\)/],
        [["describe", "notes"], /Looking it up \(\d+ s\)/],
        [["unlock", "notes", "--token", "0"], /Releasing the lease \(\d+ s\)/],
        [["token", "issue", "--user", "alice"], /Issuing the token \(\d+ s\)/],
      ] as const) {
        await using terminal = new Terminal(fleet, args);
        await terminal.shows(line);
      }
    } finally {
      process.kill(redis.pid, "SIGCONT");
    }
  });

  it("the password of Redis is in no output and in no file", () => {
    const files = readdirSync(fleet.root, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
    const kept = files.map((entry) => readFileSync(join(entry.parentPath, entry.name), "utf8"));
    expect(kept.length).toBeGreaterThan(3);
    expect(printed.length).toBeGreaterThan(20);
    for (const text of [...printed, ...kept]) expect(text).not.toContain(PASSWORD);
  });
});
