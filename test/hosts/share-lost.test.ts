import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { DoctorResult } from "../../src/fleet/doctor/doctor.js";
import { eventually } from "../fixtures/eventually.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { HostDoors } from "../gateway/hosts-harness.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`shared storage that goes away is not tested: ${problem}`);

const UNUSABLE = "FLEET_STORAGE_UNUSABLE";
const AWAY = "the shared storage is not available";

describe.skipIf(problem !== undefined)("serve, with shared storage that disappears,", () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(() => redis.end());

  it.each([
    ["folder is renamed away", false],
    ["mount is gone", true],
  ])(
    "reports that the shared storage's %s, creates no folder in its place, and uses the storage again when it is back",
    async (_, empty) => {
      await using doors = await HostDoors.open({
        redis,
        names: ["h1"],
        storage: "shared",
        env: {
          COPILOTFLEET_HEALTH_INTERVAL: "500ms",
          COPILOTFLEET_HEALTH_TIMEOUT: "3s",
          COPILOTFLEET_HEALTH_FAILURES: "6",
        },
      });
      const { hosts, store } = doors;
      const { shared } = hosts;
      const h1 = hosts.host("h1");
      for (const id of ["old", "other"]) await h1.ok(["create", "--user", "ann", "--id", id, "--prompt", "one"]);
      await h1.ok(["create", "--user", "ann", "--id", "unused"]);
      const client = await doors.raw("ann", "h1");
      await client.request("session.create", { sessionId: "opened" });

      const away = `${shared}-away`;
      renameSync(shared, away);
      if (empty) mkdirSync(shared, { mode: 0o700 });
      for (const [method, params] of [
        ["session.send", { sessionId: "opened", prompt: "lost" }],
        ["session.resume", { sessionId: "old" }],
        ["session.create", { sessionId: "made" }],
        ["session.delete", { sessionId: "old" }],
      ] as const) {
        const { error } = await client.request(method, params);
        expect(error, method).toMatchObject({ message: expect.stringContaining(shared), data: { code: UNUSABLE } });
      }
      for (const args of [
        ["send", "old", "lost", "--user", "ann"],
        ["send", "unused", "lost", "--user", "ann"],
        ["create", "--user", "ann", "--id", "made", "--prompt", "lost"],
        ["create", "--user", "carl", "--id", "made", "--prompt", "lost"],
        ["list"],
        ["spawn", "--user", "bob"],
        ["delete", "old"],
        ["gc"],
      ]) {
        const error = await h1.refusal(7, args);
        expect(error, args.join(" ")).toMatchObject({ code: UNUSABLE, message: expect.stringContaining(shared) });
      }
      await eventually("serve to say so", () => doors.log("h1").some(({ msg }) => msg.startsWith(AWAY)));
      const metrics = String(doors.log("h1").find(({ msg }) => msg === "serving")?.metrics);
      const unready = await fetch(`http://${metrics}/readyz`);
      expect({ status: unready.status, body: await unready.text() }).toEqual({
        status: 503,
        body: expect.stringContaining(AWAY),
      });
      const examined = (await h1.run(["doctor", "--json"])).json<DoctorResult>();
      expect(examined.checks.find(({ name }) => name === "shared storage")).toMatchObject({
        ok: false,
        detail: expect.stringMatching(
          empty ? /is not the folder that h1 shares/ : /^The shared storage .* cannot be used/,
        ),
      });
      // A server that ends while the share is away is started again when the share is back.
      const server = await h1.spawn("ann");
      process.kill(server.pid ?? 0, "SIGKILL");
      await h1.refusal(7, ["restart", "--user", "bob"]);
      expect(empty ? readdirSync(shared) : existsSync(shared)).toEqual(empty ? [] : false);
      expect(await store.sessions.read("old")).toMatchObject({ turns: 1 });
      expect(await store.sessions.read("opened")).toMatchObject({ turns: 0 });
      expect(await store.sessions.read("made")).toBeNull();

      rmSync(shared, { recursive: true, force: true });
      renameSync(away, shared);
      await eventually("serve to find it", async () => (await fetch(`http://${metrics}/readyz`)).ok);
      expect(await h1.json(["send", "old", "two", "--user", "ann"])).toMatchObject({ session: { state: "idle" } });
      expect(await h1.json(["send", "unused", "one", "--user", "ann"])).toMatchObject({ session: { state: "idle" } });
      expect((await client.turn("opened", "two")).error).toBeUndefined();
      expect(await store.sessions.read("old")).toMatchObject({ turns: 2 });
      expect(await h1.spawn("bob")).toMatchObject({ state: "ready" });
      const { sessions } = await h1.json<{ sessions: { id: string; state: string }[] }>(["list"]);
      expect(sessions.map(({ id }) => id).toSorted()).toEqual(["old", "opened", "other", "unused"]);
      expect(sessions.filter(({ state }) => state === "gone")).toEqual([]);
    },
    240_000,
  );

  it("refuses to start while the shared storage is away, and creates no folder in its place", async () => {
    await using doors = await HostDoors.open({ redis, names: ["h1"], storage: "shared" });
    const { shared } = doors.hosts;
    const h1 = doors.hosts.host("h1");
    await h1.ok(["create", "--user", "ann", "--id", "old", "--prompt", "one"]);
    await h1.stopServing("SIGTERM");
    const away = `${shared}-away`;
    renameSync(shared, away);
    mkdirSync(shared, { mode: 0o700 });
    expect(await h1.refusal(7, ["serve"])).toMatchObject({ code: UNUSABLE, message: expect.stringContaining(shared) });
    expect(readdirSync(shared)).toEqual([]);
    rmSync(shared, { recursive: true });
    renameSync(away, shared);
    await doors.serve("h1");
    expect(await h1.json(["send", "old", "two", "--user", "ann"])).toMatchObject({ session: { state: "idle" } });
  }, 120_000);
});
