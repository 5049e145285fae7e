import { existsSync, lstatSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { serverIdOf } from "../../src/base/ids.js";
import type { SessionRecord } from "../../src/base/session.js";
import type { Config } from "../../src/config/schema.js";
import { placePath, type StatePlace } from "../../src/runtime/files/shared-storage.js";
import type { GcResult } from "../../src/sessions/gc/collect.js";
import { type ClearedRemain, clearRemains } from "../../src/sessions/remains.js";
import { fetchSession } from "../../src/sessions/takeover.js";
import { openStore } from "../../src/store/file/file-store.js";
import type { Store } from "../../src/store/ports.js";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import { TestHosts } from "../fixtures/hosts/hosts.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { keyedRoot } from "../fixtures/store/store-root.js";

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
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

  describe("in a host's folder of the shared storage,", () => {
    let shared: string;
    let store: Store;
    const h1 = (): StatePlace => ({ shared, host: "h1", group: serverIdOf("alice") });
    const h2 = (): StatePlace => ({ ...h1(), host: "h2" });
    let fleets = 0;
    beforeEach(async () => {
      shared = await keyedRoot();
      store = openStore(redis.url(`remains-${fleets++}`), await keyedRoot(), "h1");
    });
    afterEach(async () => await store.close());

    function plant(path: string, file = "events.jsonl"): string {
      mkdirSync(path, { recursive: true });
      writeFileSync(join(path, file), "history");
      return path;
    }
    const block = (id: string) => {
      const path = join(placePath(h1()), id);
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(path, "");
      return path;
    };
    const takenAt = (id: string, mark: string) => join(dirname(placePath(h1())), "taken", `${id}~${mark}`);
    async function record(id: string, over: Partial<SessionRecord> = {}): Promise<void> {
      const now = new Date().toISOString();
      const common = { purpose: null, members: [], model: null, ttlMs: null, usedBy: null };
      await store.sessions.create({
        ...common,
        id,
        owner: "alice",
        kind: "private",
        persistence: "persistent",
        serverId: serverIdOf("alice"),
        host: "h2",
        term: 1,
        createdAt: now,
        lastUsedAt: now,
        turns: 1,
        ...over,
      });
    }
    const clear = async (laterMs: number, dryRun = false): Promise<ClearedRemain[]> => {
      const config = { storage: { shared }, health: { timeoutMs: 1_000 } } as Config;
      const signal = new AbortController().signal;
      const request = { ttlMs: DAY_MS, dryRun, nowMs: Date.now() + laterMs, signal };
      return (await clearRemains({ store, config }, request)).sort((a, b) => a.kind.localeCompare(b.kind));
    };

    it("clearRemains deletes an old left-over of a takeover, unless a record refers to it or it is the only copy", async () => {
      const [deleted, elsewhere] = [block("deleted"), block("elsewhere")];
      await record("elsewhere");
      plant(join(placePath(h2()), "elsewhere"));
      const copied = plant(takenAt("elsewhere", "aa"));
      const orphan = plant(takenAt("deleted", "bb"));
      await record("under-way", { from: { host: "h1", group: serverIdOf("alice"), mark: "cc", taker: null } });
      const underWay = plant(takenAt("under-way", "cc"));
      await record("lost", { turns: 0 });
      const onlyOne = plant(takenAt("lost", "dd"));
      const incoming = plant(join(dirname(placePath(h1())), ".incoming-ee"));
      const live = plant(join(placePath(h1()), "live"));
      const strange = join(placePath(h1()), "strange");
      writeFileSync(strange, "of somebody");
      const foreign = plant(join(dirname(placePath(h2())), "taken", "deleted~ff"));
      const all = [deleted, elsewhere, copied, orphan, underWay, onlyOne, incoming, live, strange, foreign];

      expect(await clear(HOUR_MS / 2)).toEqual([]);
      const due = [
        { kind: "block", session: "deleted", bytes: 0 },
        { kind: "incoming", session: null, bytes: 7 },
        { kind: "taken", session: "elsewhere", bytes: 7 },
      ];
      expect(await clear(2 * HOUR_MS, true)).toEqual(due);
      expect(all.filter((path) => !existsSync(path))).toEqual([]);
      // Two runs at the same time together delete every left-over that is due, and nothing else.
      const both = await Promise.all([clear(2 * HOUR_MS), clear(2 * HOUR_MS)]);
      for (const entry of due) expect(both.flat()).toContainEqual(entry);
      expect(all.filter((path) => !existsSync(path))).toEqual([deleted, copied, incoming]);
      // If a left-over's session has no record, the left-over stays until the TTL of sessions has passed.
      expect(await clear(DAY_MS + HOUR_MS)).toEqual([{ kind: "taken", session: "deleted", bytes: 7 }]);
      expect(await clear(9 * DAY_MS)).toEqual([]);
    });

    it("clearRemains deletes nothing that a running takeover needs, at any step of the takeover", async () => {
      for (let step = 0; step < 2; step++) {
        const [id, mark] = [`step-${step}`, `a${step}`];
        const from = { host: "h1", group: serverIdOf("alice"), mark, taker: null };
        await record(id, { from });
        plant(join(placePath(h1()), id));
        let checks = 0;
        const check = async () => {
          if (checks++ === step) expect(await clear(9 * DAY_MS)).toEqual([]);
        };
        await fetchSession({ id, mark, from: h1(), to: h2(), hasHistory: true, check });
        expect(await clear(9 * DAY_MS)).toEqual([]);
        expect(readFileSync(join(placePath(h2()), id, "events.jsonl"), "utf8")).toBe("history");
        // Make the takeover look complete, but killed before it cleaned up.
        await store.sessions.update(id, (draft) => {
          delete draft.from;
        });
        expect(await clear(2 * HOUR_MS)).toEqual([{ kind: "taken", session: id, bytes: 7 }]);
      }
    });
  });

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
