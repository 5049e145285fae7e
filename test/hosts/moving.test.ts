import { existsSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { serverIdOf } from "../../src/base/ids.js";
import { rendezvousChoice } from "../../src/servers/placement.js";
import type { GcResult } from "../../src/sessions/gc/collect.js";
import { eventually } from "../fixtures/eventually.js";
import { TestHosts } from "../fixtures/hosts/hosts.js";
import { startHeldModel } from "../fixtures/models/held-model.js";
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

  it("while a host drains, its users get new sessions elsewhere; after its last turn, their old sessions follow", async () => {
    await using model = await startHeldModel();
    const { env } = model;
    await using hosts = new TestHosts({ redis, names: ["h1", "h2"], storage: "shared", env });
    await hosts.serve();
    const { store } = hosts;
    const [h1, h2] = [hosts.host("h1"), hosts.host("h2")];
    const [user = ""] = usersOf("h2", 1);
    const [old, other, added] = [fresh("old"), fresh("other"), fresh("added")];
    await h1.create(user, old);
    await h1.create(user, other);
    expect(await h1.send(user, old, "one")).toBe("[turn 1] one");
    expect(await h1.json(["route", "--user", user])).toMatchObject({ host: "h2" });
    const last = h2.send(user, old, "!hold two");
    const relayed = h1.run(["send", other, "!hold words", "--user", user]);
    await eventually("the turns", () => model.held("two") + model.held("words") === 2);
    const stopped = h2.stopServing("SIGTERM");
    const isDraining = async () => (await store.hosts.list()).some(({ state }) => state === "draining");
    await eventually("the drain", isDraining);
    expect(await h1.json(["route", "--user", user])).toMatchObject({ host: "h1" });
    await h1.create(user, added);
    expect(await store.sessions.read(added)).toMatchObject({ host: "h1" });
    model.release();
    expect(await last).toBe("[turn 2] two");
    // The command may warn that the host was gone before it could read the session again.
    expect(await relayed).toMatchObject({ code: 0, stdout: "[turn 1] words\n" });
    await stopped;
    expect(await h1.send(user, old, "three")).toBe("[turn 3] three");
    expect(await store.sessions.read(old)).toMatchObject({ host: "h1", turns: 3 });
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
