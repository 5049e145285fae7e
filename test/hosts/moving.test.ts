import { existsSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { Rebalanced } from "../../src/fleet/options.js";
import type { RebalancePlan } from "../../src/hosts/rebalance.js";
import { serverIdOf } from "../../src/model/ids.js";
import { rendezvousChoice } from "../../src/pool/placement.js";
import type { GcResult } from "../../src/sessions/gc/collect.js";
import { TestHosts } from "../fixtures/hosts/hosts.js";
import { makeOld } from "../fixtures/sessions/gc-sessions.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";

const DAY_MS = 24 * 60 * 60 * 1000;
const problem = redisProblem();
if (problem !== undefined) console.warn(`moving users between hosts is not tested: ${problem}`);

/** How many tests have started, including retries of a failed test. */
let tries = 0;
/** A name for a user or session that no earlier test and no earlier attempt of this test has used. */
const fresh = (name: string) => `${name}-${tries}`;

/** Users who belong on this host when both h1 and h2 are alive. */
function usersOf(host: string, count: number): string[] {
  const users = Array.from({ length: 100 }, (_, index) => fresh(`user-${index}`));
  return users.filter((user) => rendezvousChoice(user, ["h1", "h2"]) === host).slice(0, count);
}

describe.skipIf(problem !== undefined)("the fleet, when hosts join and leave,", () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(() => redis.end());
  beforeEach(() => {
    tries++;
  });

  it("route --rebalance moves users and their sessions to a new host, but not sessions under a lease", async () => {
    await using hosts = new TestHosts({ redis, names: ["h1", "h2"], storage: "shared" });
    const { store } = hosts;
    const [h1, h2] = [hosts.host("h1"), hosts.host("h2")];
    await h1.serve(store);
    const [mover = "", busy = ""] = usersOf("h2", 2);
    const [stayer = ""] = usersOf("h1", 1);
    for (const user of [mover, busy, stayer]) {
      await h1.create(user, `of-${user}`);
      expect(await h1.send(user, `of-${user}`, "one")).toBe("[turn 1] one");
    }
    await h2.serve(store);
    const move = (user: string) => ({ user, from: "h1", to: "h2", sessions: 1 });
    const moves = [mover, busy].sort().map(move);
    expect(await h2.json<RebalancePlan>(["route", "--plan"])).toEqual({
      hosts: [
        { name: "h1", users: 3, planned: 1, takesUsers: true },
        { name: "h2", users: 0, planned: 2, takesUsers: true },
      ],
      moves,
      stays: [],
    });
    expect(await h1.ok(["route", "--plan"])).toContain("2 users would move");
    // The plan alone moves nobody.
    expect(await store.placements.read(mover)).toMatchObject({ host: "h1" });

    // A session under a lease is in use, even between its holder's turns.
    const token = (await h1.ok(["lock", `of-${busy}`, "--user", busy])).trim();
    const { moved } = await h2.json<Rebalanced>(["route", "--rebalance", "--wait", "500ms"]);
    expect(moved.sort((a, b) => (a.user < b.user ? -1 : 1))).toEqual(
      [mover, busy].sort().map((user) => ({
        user,
        from: "h1",
        to: "h2",
        released: user === mover ? [`of-${user}`] : [],
        failure: null,
        kept: user === mover ? [] : [{ id: `of-${user}`, reason: "leased" }],
      })),
    );
    expect(await store.sessions.read(`of-${mover}`)).toMatchObject({ host: "h1", released: true });
    await h1.ok(["unlock", `of-${busy}`, "--token", token]);
    for (const [user, host] of [
      [mover, "h2"],
      [busy, "h1"],
      [stayer, "h1"],
    ] as const) {
      expect(await h1.send(user, `of-${user}`, "two")).toBe("[turn 2] two");
      expect(await store.sessions.read(`of-${user}`)).toMatchObject({ host, turns: 2 });
    }
    expect(await h1.json(["route", "--user", mover])).toMatchObject({ host: "h2" });
    // A second rebalance moves the session that stayed. It would also complete a rebalance that was killed halfway.
    expect(await h1.json(["route", "--plan"])).toMatchObject({ moves: [move(busy)] });
    expect(await h1.json(["route", "--rebalance"])).toMatchObject({
      moved: [{ user: busy, released: [`of-${busy}`] }],
    });
    expect(await h1.json(["route", "--plan"])).toMatchObject({ moves: [] });
    expect(await h1.send(busy, `of-${busy}`, "three")).toBe("[turn 3] three");
    expect(await store.sessions.read(`of-${busy}`)).toMatchObject({ host: "h2", turns: 3 });
    // New sessions of a moved user are created on the new host, no matter which host gets the request.
    await h1.create(busy, "new");
    expect(await store.sessions.read("new")).toMatchObject({ host: "h2" });
  });

  describe("with hosts that all tests share,", () => {
    let hosts: TestHosts;
    beforeAll(() => {
      hosts = new TestHosts({ redis, names: ["h1", "h2"], storage: "shared" });
    });
    afterAll(async () => {
      await hosts[Symbol.asyncDispose]();
    });
    // An earlier test may have ended a host.
    beforeEach(async () => {
      await hosts.serve();
      // The directory keeps a host as long as a session is on it.
      const left = (await hosts.store.sessions.list()).map(({ id }) => id);
      if (left.length > 0) await hosts.host("h1").ok(["delete", ...left]);
    });

    it("after a host has stopped serving, prompts of a program on it are relayed, and start no server there", async () => {
      const [h1, held] = [hosts.host("h1"), fresh("held")];
      const [user = ""] = usersOf("h1", 1);
      await using program = await h1.library();
      await program.sessions.create({ user, sessionId: held });
      expect((await program.sessions.use(held, "one", { user })).text).toBe("[turn 1] one");
      await h1.stopServing("SIGTERM");
      // The other host takes the session over, and the program's prompt is relayed there.
      expect((await program.sessions.use(held, "two", { user })).text).toBe("[turn 2] two");
      expect(await hosts.store.sessions.read(held)).toMatchObject({ host: "h2", turns: 2 });
      expect(h1.processes()).toEqual([]);
    });

    it("after a host has left, another host serves its users, and gc deletes old sessions and then the host's entry", async () => {
      const [h1, h2] = [hosts.host("h1"), hosts.host("h2")];
      const [user = ""] = usersOf("h2", 1);
      const ids = [fresh("notes"), fresh("old"), fresh("unwanted"), fresh("young")] as const;
      const [notes, old, unwanted, young] = ids;
      for (const id of ids) {
        await h1.create(user, id);
        expect(await h1.send(user, id, "one")).toBe("[turn 1] one");
        expect(await hosts.store.sessions.read(id)).toMatchObject({ host: "h2" });
      }
      await h2.stopServing("SIGTERM");
      expect(h2.processes()).toEqual([]);
      const withGone = [{ name: "h1" }, { name: "h2", gone: true }];
      expect(await hosts.store.hosts.list()).toMatchObject(withGone);
      expect(await h1.send(user, notes, "two")).toBe("[turn 2] two");
      expect(await hosts.store.sessions.read(notes)).toMatchObject({ host: "h1" });

      const state = join(hosts.shared, "hosts", "h2", serverIdOf(user), "session-state");
      makeOld(join(state, old), 2 * DAY_MS);
      await hosts.store.sessions.update(old, (draft) => {
        draft.lastUsedAt = new Date(Date.now() - 2 * DAY_MS).toISOString();
      });
      const { deleted } = JSON.parse((await h1.run(["gc", "--ttl", "24h", "--json"])).stdout) as GcResult;
      expect(deleted).toMatchObject([{ id: old, owner: user }]);
      expect(deleted[0]?.ageMs).toBeGreaterThan(DAY_MS);
      await h1.run(["delete", unwanted]);
      const left = async (id: string) => ({
        record: await hosts.store.sessions.read(id),
        isOnDisk: existsSync(join(hosts.shared, "hosts", "h1", serverIdOf(user), "session-state", id)),
      });
      expect({ old: await left(old), unwanted: await left(unwanted) }).toEqual({
        old: { record: null, isOnDisk: false },
        unwanted: { record: null, isOnDisk: false },
      });

      // gc does not remove a host that is gone while a session is still on it.
      expect(await hosts.store.hosts.list()).toMatchObject(withGone);
      expect(await h1.send(user, young, "two")).toBe("[turn 2] two");
      await h1.run(["gc", "--ttl", "24h"]);
      expect(await hosts.store.hosts.list()).toMatchObject([{ name: "h1", gone: false }]);
      expect((await h1.ps()).filter((server) => server.user === user)).toMatchObject([{ state: "ready" }]);
      await h2.serve(hosts.store);
      expect(await hosts.store.hosts.list()).toMatchObject([{ name: "h1" }, { name: "h2", gone: false }]);
    });
  });
});
