import { execFileSync } from "node:child_process";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { HostDoors } from "../gateway/hosts-harness.js";

const problem = redisProblem();
const isRoot = process.getuid?.() === 0;
if (problem !== undefined || !isRoot) console.warn("shared storage that is read-only is not tested: that takes root");

/** Makes a folder read-only, even for root, until the returned object is disposed. */
function readOnly(folder: string): Disposable {
  execFileSync("mount", ["--bind", folder, folder]);
  execFileSync("mount", ["-o", "remount,bind,ro", folder]);
  return { [Symbol.dispose]: () => void execFileSync("umount", ["--lazy", folder]) };
}

describe.skipIf(problem !== undefined || !isRoot)("the fleet, with shared storage that is mounted read-only,", () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(() => redis.end());

  it("refuses every deletion of a session while the shared storage is read-only, and deletes nothing", async () => {
    await using doors = await HostDoors.open({ redis, names: ["h1"], storage: "shared" });
    const { hosts, store } = doors;
    const h1 = hosts.host("h1");
    const ids = ["due", "idle", "opened"];
    for (const id of ids) {
      const ttl = id === "due" ? ["--ttl", "1s"] : [];
      await h1.ok(["create", "--user", "ann", "--id", id, ...ttl, "--prompt", "one"]);
    }
    await h1.ok(["create", "--user", "bob", "--id", "stopped", "--prompt", "one"]);
    await h1.ok(["stop", "--user", "bob"]);
    const client = await doors.raw("ann", "h1");
    await client.request("session.resume", { sessionId: "opened" });
    await delay(1_100);
    {
      using _ = readOnly(hosts.shared);
      for (const args of [["gc"], ["delete", "idle"], ["delete", "stopped"]]) {
        const error = await h1.refusal(7, args);
        expect(error, args.join(" ")).toMatchObject({
          code: "FLEET_STATE_UNWRITABLE",
          message: expect.stringMatching(new RegExp(`"${hosts.shared}/hosts/h1/.*read-only`)),
        });
      }
      for (const sessionId of ["idle", "opened"]) {
        const { error } = await client.request("session.delete", { sessionId });
        expect(error).toMatchObject({
          message: expect.stringMatching(/could not be deleted: Read-only/),
          data: { code: "FLEET_STATE_UNWRITABLE" },
        });
      }
      // With this TTL, no session is due.
      expect(await h1.json(["gc", "--ttl", "24h", "--user", "bob"])).toMatchObject({ deleted: [], skipped: [] });
    }
    expect((await store.sessions.list()).map(({ id }) => id).toSorted()).toEqual(["due", ...ids.slice(1), "stopped"]);
    for (const id of ["due", "idle", "opened"]) {
      expect(await h1.ok(["send", id, "two", "--user", "ann"])).toContain("two");
    }
    expect(await h1.json(["delete", "stopped", "idle"])).toEqual({ deleted: ["stopped", "idle"] });
    expect((await client.request("session.delete", { sessionId: "opened" })).result).toMatchObject({ success: true });
    expect((await store.sessions.list()).map(({ id }) => id)).toEqual(["due"]);
  }, 180_000);
});
