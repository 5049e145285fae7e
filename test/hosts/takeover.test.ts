import { existsSync, mkdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { serverIdOf } from "../../src/base/ids.js";
import { TestHosts } from "../fixtures/hosts/hosts.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`taking over from other hosts is not tested: ${problem}`);

describe.skipIf(problem !== undefined)("with shared storage,", () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(() => redis.end());

  it.each(["per-user", "shared"])(
    "a host takes over a dead host's sessions from shared storage (isolation %s)",
    async (isolation) => {
      await using hosts = new TestHosts({
        redis,
        names: ["h1", "h2"],
        storage: "shared",
        env: { COPILOTFLEET_ISOLATION: isolation },
      });
      await hosts.serve();
      const { store } = hosts;
      await store.placements.record("alice", null, { host: "h1", serverId: null });
      const first = await hosts.host("h1").library();
      const session = await first.sessions.create({ user: "alice", sessionId: "notes" });
      expect((await first.sessions.send(session, "one")).text).toBe("[turn 1] one");
      await first.close();
      const before = await store.sessions.read("notes");
      expect(before).toMatchObject({ host: "h1", turns: 1 });

      await using second = await hosts.host("h2").library();
      // While h1 is alive, it answers the prompts.
      expect(await second.sessions.use("notes", "early", { user: "alice" })).toMatchObject({ text: "[turn 2] early" });
      expect(await store.sessions.read("notes")).toMatchObject({ host: "h1", turns: 2 });

      await hosts.lose("h1");
      expect(await second.sessions.use("notes", "two", { user: "alice" })).toMatchObject({
        text: "[turn 3] two",
      });
      const after = await store.sessions.read("notes");
      expect(after).toMatchObject({ host: "h2", turns: 3 });
      expect(after?.from).toBeUndefined();
      expect(await store.placements.read("alice")).toMatchObject({ host: "h2" });
      const group = isolation === "shared" ? "shared" : serverIdOf("alice");
      // At the old path, a plain file keeps runtimes from creating the session again. The copied folder is gone.
      const old = join(hosts.shared, "hosts", "h1", group);
      expect(statSync(join(old, "session-state", "notes")).isFile()).toBe(true);
      expect(existsSync(join(old, "taken", "notes"))).toBe(false);
      const history = readFileSync(
        join(hosts.shared, "hosts", "h2", group, "session-state", "notes", "events.jsonl"),
        "utf8",
      );
      expect(history.match(/"type":"user.message"/g)).toHaveLength(3);

      // h1 takes the session back when it is alive again and h2 is dead.
      await hosts.host("h1").serve(store);
      await hosts.lose("h2");
      await using third = await hosts.host("h1").library();
      expect(await third.sessions.use("notes", "three", { user: "alice" })).toMatchObject({
        text: "[turn 4] three",
      });
    },
  );

  it.each(["per-user", "shared"])(
    "a host moves the sessions on its own disk to shared storage that is configured later (isolation %s)",
    async (isolation) => {
      await using hosts = new TestHosts({
        redis,
        names: ["h1"],
        storage: "local",
        env: { COPILOTFLEET_ISOLATION: isolation },
      });
      const host = hosts.host("h1");
      await host.create("alice", "notes");
      expect(await host.send("alice", "notes", "one")).toBe("[turn 1] one");
      const shared = join(host.folder, "common");
      mkdirSync(shared, { mode: 0o700 });
      host.env.COPILOTFLEET_STORAGE_SHARED = shared;
      expect((await host.run(["serve"])).stderr).toContain("copilotfleet stop --all");
      await host.ok(["stop", "--all"]);
      // Without serve, no other host knows that this one is alive. So another host could take over a session that is
      // open here.
      expect(await host.refusal(7, ["send", "notes", "early", "--user", "alice"])).toMatchObject({
        code: "FLEET_HOST_AWAY",
      });
      await host.serve(hosts.store);
      expect(await host.send("alice", "notes", "two")).toBe("[turn 2] two");
      const group = isolation === "shared" ? "shared" : serverIdOf("alice");
      expect(existsSync(join(shared, "hosts", "h1", group, "session-state", "notes", "events.jsonl"))).toBe(true);
    },
  );
});
