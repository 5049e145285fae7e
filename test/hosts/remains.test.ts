import { existsSync, lstatSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { serverIdOf } from "../../src/base/ids.js";
import type { GcResult } from "../../src/sessions/gc/collect.js";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import { TestHosts } from "../fixtures/hosts/hosts.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";

const HOUR_MS = 3_600_000;
const problem = redisProblem();
if (problem !== undefined) console.warn(`what takeovers leave behind is not tested: ${problem}`);

/** The environment of a command whose clock is two hours ahead. */
const LATER = {
  NODE_OPTIONS: `--import=data:text/javascript,const%20now=Date.now;Date.now=()=>now()+${2 * HOUR_MS}`,
};

describe.skipIf(problem !== undefined)("the fleet, with the left-overs of takeovers", () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(() => redis.end());

  it("gc deletes the block of a deleted session, and the old host's runtime does not create the folder again", async () => {
    await using hosts = new TestHosts({ redis, names: ["h1", "h2"], storage: "shared" });
    await hosts.serve();
    const [h1, h2] = [hosts.host("h1"), hosts.host("h2")];
    await hosts.store.placements.record("alice", null, { host: "h1", serverId: null });
    await h1.create("alice", "notes");
    expect(await h1.send("alice", "notes", "one")).toBe("[turn 1] one");
    const { url, token } = JSON.parse(await h1.ok(["connect", "--user", "alice", "--json"]));
    const direct = await RawClient.as(url, token);
    expect((await direct.request("session.resume", { sessionId: "notes" }, 20_000)).error).toBeUndefined();

    const pause = h1.suspend();
    await hosts.gone("h1");
    expect(await h2.send("alice", "notes", "two")).toBe("[turn 2] two");
    const isThere = async () => (await hosts.store.hosts.list()).some(({ name, gone }) => name === "h1" && !gone);
    pause.resume();
    await eventually("the return of h1", isThere, 20_000);
    // h1 unloads the session, because its runtime can no longer write to the history.
    const isUnloaded = async () => {
      const { error } = await direct.request("session.metadata.activity", { sessionId: "notes" }, 20_000);
      return /session not found/i.test(error?.message ?? "");
    };
    await eventually("the unloading of what was taken", isUnloaded, 20_000);
    const place = join(hosts.shared, "hosts", "h1", serverIdOf("alice"), "session-state", "notes");
    const gc = async (env = {}, args: string[] = []) =>
      JSON.parse(await h1.ok(["gc", "--ttl", "30d", "--json", ...args], { env })) as GcResult;

    // While the session exists on any host, the block stays, so that h1's runtime cannot create the session again.
    expect((await gc(LATER)).remains).toEqual([]);
    expect(lstatSync(place).isFile()).toBe(true);
    await h2.ok(["delete", "notes"]);
    expect((await gc()).remains).toEqual([]);
    const due = [{ kind: "block", session: "notes", bytes: 0 }];
    expect(await gc(LATER, ["--dry-run"])).toMatchObject({ dryRun: true, remains: due });
    expect(existsSync(place)).toBe(true);
    expect((await gc(LATER)).remains).toEqual(due);
    expect(existsSync(place)).toBe(false);
    const late = await direct.request("session.send", { sessionId: "notes", prompt: "three" }, 20_000);
    expect(late.error).toMatchObject({ message: expect.stringMatching(/session not found/i) });
    expect(existsSync(place)).toBe(false);
    direct.socket.destroy();
    // Any user may now use the id.
    await hosts.store.placements.record("bob", null, { host: "h1", serverId: null });
    await h1.create("bob", "notes");
    expect(await h1.send("bob", "notes", "mine")).toBe("[turn 1] mine");
  });
});
