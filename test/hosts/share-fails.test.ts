import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from "node:fs";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { DoctorResult } from "../../src/fleet/doctor/doctor.js";
import { eventually } from "../fixtures/eventually.js";
import { readOnly } from "../fixtures/hosts/shared-folder.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { HostDoors } from "./door-harness.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`shared storage that goes away is not tested: ${problem}`);

const isRoot = process.getuid?.() === 0;
if (!isRoot) console.warn("shared storage that is read-only is not tested: that takes root");

const UNUSABLE = "FLEET_STORAGE_UNUSABLE";
const AWAY = "the shared storage is not available";

/**
 * A gc for which every idle session is due. Do not give the sessions a short TTL instead: on a slow machine, serve's
 * own gc, a minute after the start of serve, would then delete them.
 */
const EAGER_GC = ["gc", "--ttl", "1ms"];

/** How many tests have started, including retries of a failed test. */
let tries = 0;
/** A name for a user or session that no earlier test and no earlier attempt of this test has used. */
const fresh = (name: string) => `${name}-${tries}`;

/** Moves a folder away. Until `back` is called, an empty folder or nothing is in its place. */
function takeAway(folder: string, leavesEmpty: boolean): Disposable & { back(): void } {
  const away = `${folder}-away`;
  renameSync(folder, away);
  if (leavesEmpty) mkdirSync(folder, { mode: 0o700 });
  const back = () => {
    if (!existsSync(away)) return;
    rmSync(folder, { recursive: true, force: true });
    renameSync(away, folder);
  };
  return { back, [Symbol.dispose]: back };
}

describe.skipIf(problem !== undefined)("the fleet, with shared storage that fails,", () => {
  let redis: RedisServer;
  let doors: HostDoors;
  beforeAll(async () => {
    redis = await RedisServer.start();
    doors = await HostDoors.open({
      redis,
      names: ["h1"],
      storage: "shared",
      env: {
        COPILOTFLEET_HEALTH_INTERVAL: "500ms",
        COPILOTFLEET_HEALTH_TIMEOUT: "3s",
        COPILOTFLEET_HEALTH_FAILURES: "6",
      },
    });
  });
  afterAll(async () => {
    await doors[Symbol.asyncDispose]();
    await redis.end();
  });
  beforeEach(async () => {
    tries++;
    await doors.serve(); // an earlier test may have stopped it
  });

  it.each([
    ["folder is renamed away", false],
    ["mount is gone", true],
  ])(
    "when the shared storage's %s, serve reports it, creates no folder there, and recovers when the storage is back",
    async (_, empty) => {
      const { hosts, store } = doors;
      const [old, due, unused] = [fresh("old"), fresh("due"), fresh("unused")];
      const [opened, made] = [fresh("opened"), fresh("made")];
      const [ann, bob] = [fresh("ann"), fresh("bob")];
      const printed = doors.log("h1").length;
      const { shared } = hosts;
      const h1 = hosts.host("h1");
      await h1.ok(["create", "--user", ann, "--id", old, "--prompt", "one"]);
      await h1.ok(["create", "--user", ann, "--id", due, "--prompt", "one"]);
      await h1.ok(["create", "--user", ann, "--id", unused]);
      const client = await doors.raw(ann, "h1");
      await client.requestOk("session.create", { sessionId: opened });

      using gone = takeAway(shared, empty);
      for (const [method, params] of [
        ["session.send", { sessionId: opened, prompt: "lost" }],
        ["session.resume", { sessionId: old }],
        ["session.create", { sessionId: made }],
        ["session.delete", { sessionId: old }],
      ] as const) {
        const { error } = await client.request(method, params);
        expect(error, method).toMatchObject({ message: expect.stringContaining(shared), data: { code: UNUSABLE } });
      }
      for (const args of [
        ["send", old, "lost", "--user", ann],
        ["send", unused, "lost", "--user", ann],
        ["create", "--user", ann, "--id", made, "--prompt", "lost"],
        ["create", "--user", fresh("carl"), "--id", made, "--prompt", "lost"],
        ["list"],
        ["spawn", "--user", bob],
        ["delete", old],
        EAGER_GC,
      ]) {
        const error = await h1.refusal(7, args);
        expect(error, args.join(" ")).toMatchObject({ code: UNUSABLE, message: expect.stringContaining(shared) });
      }
      await eventually("serve to say so", () =>
        doors
          .log("h1")
          .slice(printed)
          .some(({ msg }) => msg.startsWith(AWAY)),
      );
      const metrics = String(doors.log("h1").findLast(({ msg }) => msg === "serving")?.metrics);
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
      // doctor does not report the histories as deleted.
      expect(examined.checks.find(({ name }) => name === "sessions")).toMatchObject({
        level: "failed",
        detail: expect.stringContaining(shared),
        items: [],
      });
      // A server that ends while the share is away is started again when the share is back.
      const server = await h1.spawn(ann);
      process.kill(server.pid ?? 0, "SIGKILL");
      await h1.refusal(7, ["restart", "--user", bob]);
      expect(empty ? readdirSync(shared) : existsSync(shared)).toEqual(empty ? [] : false);
      expect(await store.sessions.read(old)).toMatchObject({ turns: 1 });
      expect(await store.sessions.read(opened)).toMatchObject({ turns: 0 });
      expect(await store.sessions.read(made)).toBeNull();

      gone.back();
      await eventually("serve to find it", async () => (await fetch(`http://${metrics}/readyz`)).ok);
      expect(await h1.json(["send", old, "two", "--user", ann])).toMatchObject({ session: { state: "idle" } });
      expect(await h1.json(["send", unused, "one", "--user", ann])).toMatchObject({ session: { state: "idle" } });
      expect((await client.turn(opened, "two")).error).toBeUndefined();
      expect(await store.sessions.read(old)).toMatchObject({ turns: 2 });
      expect(await h1.spawn(bob)).toMatchObject({ state: "ready" });
      const { sessions } = await h1.json<{ sessions: { id: string; state: string }[] }>(["list"]);
      const own = sessions.filter(({ id }) => [old, opened, due, unused, made].includes(id));
      expect(own.map(({ id }) => id).toSorted()).toEqual([due, old, opened, unused]);
      expect(own.filter(({ state }) => state === "gone")).toEqual([]);
    },
  );

  it("serve refuses to start while the shared storage is away, and creates no folder in its place", async () => {
    const [ann, old] = [fresh("ann"), fresh("old")];
    const { shared } = doors.hosts;
    const h1 = doors.hosts.host("h1");
    await h1.ok(["create", "--user", ann, "--id", old, "--prompt", "one"]);
    await h1.stopServing("SIGTERM");
    using gone = takeAway(shared, true);
    expect(await h1.refusal(7, ["serve"])).toMatchObject({ code: UNUSABLE, message: expect.stringContaining(shared) });
    expect(readdirSync(shared)).toEqual([]);
    gone.back();
    await doors.serve();
    expect(await h1.json(["send", old, "two", "--user", ann])).toMatchObject({ session: { state: "idle" } });
  });

  it.skipIf(!isRoot)(
    "while the shared storage is read-only, every deletion of a session is refused, and nothing is deleted",
    async () => {
      const { hosts, store } = doors;
      const h1 = hosts.host("h1");
      const [ann, bob] = [fresh("ann"), fresh("bob")];
      const [due, idle, opened, stopped] = [fresh("due"), fresh("idle"), fresh("opened"), fresh("stopped")];
      const own = async () => {
        const all = [due, idle, opened, stopped];
        return (await store.sessions.list()).map(({ id }) => id).filter((id) => all.includes(id));
      };
      // Servers in bwrap have their own mounts, so the mount below would not affect them. A failing file system would.
      const env = { COPILOTFLEET_SANDBOX_MODE: "none" };
      for (const id of [due, idle, opened]) {
        await h1.ok(["create", "--user", ann, "--id", id, "--prompt", "one"], { env });
      }
      await h1.ok(["create", "--user", bob, "--id", stopped, "--prompt", "one"]);
      await h1.ok(["stop", "--user", bob]);
      const client = await doors.raw(ann, "h1");
      await client.requestOk("session.resume", { sessionId: opened });
      {
        using _ = readOnly(hosts.shared);
        for (const args of [EAGER_GC, ["delete", idle], ["delete", stopped]]) {
          const error = await h1.refusal(7, args);
          expect(error, args.join(" ")).toMatchObject({
            code: "FLEET_STATE_UNWRITABLE",
            message: expect.stringMatching(new RegExp(`"${hosts.shared}/hosts/h1/.*read-only`)),
          });
        }
        for (const sessionId of [idle, opened]) {
          const { error } = await client.request("session.delete", { sessionId });
          expect(error).toMatchObject({
            message: expect.stringMatching(/could not be deleted: Read-only/),
            data: { code: "FLEET_STATE_UNWRITABLE" },
          });
        }
        // With this TTL, no session is due, so gc succeeds even while the storage is read-only.
        expect(await h1.json(["gc", "--ttl", "24h", "--user", bob])).toMatchObject({ deleted: [], skipped: [] });
      }
      expect((await own()).toSorted()).toEqual([due, idle, opened, stopped]);
      for (const id of [due, idle, opened]) {
        expect(await h1.ok(["send", id, "two", "--user", ann])).toContain("two");
      }
      expect(await h1.json(["delete", stopped, idle])).toEqual({ deleted: [stopped, idle] });
      expect((await client.request("session.delete", { sessionId: opened })).result).toMatchObject({ success: true });
      expect(await own()).toEqual([due]);
    },
  );
});
