import { execFile } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Check } from "../../src/fleet/doctor/checks.js";
import type { Lease } from "../../src/model/lease.js";
import type { ServerView } from "../../src/pool/server.js";
import type { SessionView } from "../../src/sessions/view.js";
import { TestFleet } from "../fixtures/commands/cli.js";
import { Terminal } from "../fixtures/commands/terminal.js";
import { eventually } from "../fixtures/eventually.js";
import { Stopwatch } from "../fixtures/stopwatch.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";

/** A command must have ended by then: 5 s by the contract, plus its start and the delay of a busy machine. */
const BOUND_MS = 6_900;
/** The checks that doctor cannot make without the store. */
const SKIPPED =
  "registry,session records,damage,sessions,servers,stray processes,pool,serve,front door,tokens,ports,hosts".split(
    ",",
  );
/** How much longer `doctor` may take, because it also tries the runtime. */
const TRIAL_MS = 2_500;
const PASSWORD = "canary-of-redis";
const problem = redisProblem();
if (problem !== undefined) console.warn(`the command on Redis is not tested: ${problem}`);

/** Runs the command on a Redis that needs a password. The last test searches all output and all files for the password. */
describe.skipIf(problem !== undefined)("the fleet on Redis", () => {
  let redis: RedisServer;
  let fleet: TestFleet;
  const printed: string[] = [];

  beforeAll(async () => {
    redis = await RedisServer.start();
    await redis.client.config("SET", "requirepass", PASSWORD);
    const store = redis.url("f").replace("redis://", `redis://:${PASSWORD}@`);
    fleet = new TestFleet({ COPILOTFLEET_STORE: store });
  });
  afterAll(async () => {
    try {
      await fleet.end();
    } finally {
      await redis.end();
    }
  });

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
    expect(await json(["ps"])).toMatchObject({ servers: [] });
    const { session, reply } = await json<{ session: SessionView; reply: string }>([
      ...["create", "--user", "alice", "--id", "notes", "--prompt", "one"],
    ]);
    expect({ owner: session.owner, reply }).toEqual({ owner: "alice", reply: "[turn 1] one" });
    const { servers } = await json<{ servers: ServerView[] }>(["ps"]);
    expect(servers).toMatchObject([{ user: "alice", state: "ready" }]);
    process.kill(servers[0]?.pid ?? 0, "SIGKILL");
    await eventually("the death", async () => (await fleet.server("alice")).state === "failed");
    expect(await json(["send", "notes", "two", "--user", "alice"])).toMatchObject({ reply: "[turn 2] two" });
    expect(await fleet.refusal(4, ["send", "notes", "x", "--user", "mallory"])).toMatchObject({
      code: "FLEET_SESSION_NOT_FOUND",
    });
  });

  it("lock, spawn --count, list, doctor, gc and stop work on Redis", async () => {
    const { lease } = await json<{ lease: Lease & { token: string } }>(["lock", "notes", "--user", "alice"]);
    expect(await json(["lock", "notes", "--show"])).toMatchObject({ lease: { holder: "alice", fence: lease.fence } });
    await json(["unlock", "notes", "--token", lease.token]);
    const many = await json<{ servers: ServerView[] }>(["spawn", "--user", "team", "--count", "4"]);
    expect(new Set(many.servers.map(({ port }) => port)).size).toBe(4);
    expect((await json<{ sessions: SessionView[] }>(["list"])).sessions.map(({ id }) => id)).toEqual(["notes"]);
    expect(await json<{ ok: boolean }>(["doctor"])).toMatchObject({ ok: true });
    const known = (await json<{ servers: ServerView[] }>(["ps"])).servers.map(({ user }) => user);
    expect(known.toSorted(), "doctor tries a server out, and leaves no record of it").toEqual([
      ...["alice", "team-1", "team-2", "team-3", "team-4"],
    ]);
    await json(["create", "--user", "alice", "--id", "old", "--ttl", "1ms"]);
    const collected = await json<{ deleted: { id: string }[] }>(["gc", "--ttl", "24h"]);
    expect(collected.deleted.map(({ id }) => id)).toEqual(["old"]);
    const { stopped } = await json<{ stopped: unknown[] }>(["stop", "--all"]);
    expect(stopped).toHaveLength(5);
  });

  it("a session on Redis takes 12 prompts at once from 12 processes, one turn at a time", async () => {
    const prompts = Array.from({ length: 12 }, (_, index) => `p${index}`);
    const replies = await Promise.all(
      prompts.map((prompt) => fleet.send("alice", "notes", prompt, { ownProcess: true })),
    );
    const turns = replies.map((reply, index) => {
      const [, turn, text] = /^\[turn (\d+)\] (.*)$/.exec(reply) ?? [];
      expect(text).toBe(prompts[index]);
      return Number(turn);
    });
    expect(turns.toSorted((a, b) => a - b)).toEqual(prompts.map((_, index) => index + 3));
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
      env: { COPILOTFLEET_STORE: `redis://:${PASSWORD}@127.0.0.1:1/0` },
    });
    expect(nobody).toMatchObject({ code: "FLEET_STORE_UNAVAILABLE", message: expect.stringContaining("127.0.0.1:1 ") });
    // Nothing listens at this address, so ps fails before the time limit for an answer.
    expect(before.ms).toBeLessThan(4_900);
    const stranger = await fleet.refusal(3, ["ps"], { env: { COPILOTFLEET_STORE: redis.url("f") } });
    expect(stranger).toMatchObject({ code: "FLEET_STORE_DENIED" });
    const credentials = `redis://:${PASSWORD}@127.0.0.1:${redis.port}`;
    const unknown = await fleet.refusal(3, ["ps"], { env: { COPILOTFLEET_STORE: `${credentials}/99` } });
    expect(unknown).toMatchObject({
      code: "FLEET_CONFIG_INVALID",
      message: expect.stringContaining(`"store" names "redis://127.0.0.1:${redis.port}/99"`),
    });
    printed.push(JSON.stringify([nobody, stranger, unknown]));
  });

  it("no command starts a second server on the same home after Redis lost its data, until an operator decides", async () => {
    const { pid } = await fleet.spawn("alice");
    await redis.client.flushall();
    const errors = await Promise.all(
      [["ps"], ["spawn", "--user", "alice"], ["send", "notes", "x", "--user", "alice"]].map((args) =>
        fleet.refusal(7, args),
      ),
    );
    for (const error of errors) expect(error).toMatchObject({ code: "FLEET_STATE_LOST" });
    printed.push(JSON.stringify(errors));
    expect(fleet.processes()).toEqual([pid]);
    const [, command = "false"] = /^(mv .*)$/m.exec(errors[0]?.suggestions.join("\n") ?? "") ?? [];
    const bin = join(fleet.folder, "bin");
    await promisify(execFile)("sh", [
      "-ec",
      `mkdir -p ${bin}; ln -s ${join(process.cwd(), "bin/run.js")} ${bin}/copilotfleet`,
    ]);
    const env = { ...fleet.env, PATH: `${bin}:${fleet.env.PATH}` };
    const { stdout } = await promisify(execFile)("sh", ["-ec", command], { env, cwd: fleet.folder });
    printed.push(stdout);
    await eventually("the end of what nobody knows any more", () => fleet.processes().length === 0);
    expect(await json(["ps"])).toMatchObject({ servers: [] });
    expect(await fleet.spawn("alice")).toMatchObject({ state: "ready" });
  });

  it("commands on a terminal report that they take more than a second while Redis does not answer", async () => {
    process.kill(redis.pid, "SIGSTOP");
    try {
      for (const [args, line] of [
        [["ps"], /Reading the list \(\d+ s\)/],
        [["top", "--once"], /Asking all hosts \(\d+ s\)/],
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
