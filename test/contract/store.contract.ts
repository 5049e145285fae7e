import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { Store } from "../../src/store/store.js";
import { keyedTurn, serverRecord, sessionRecord } from "../fixtures/store/store-records.js";
import { describeLeases } from "./leases.contract.js";
import { describeLimits, describeSlots } from "./limits.contract.js";
import { describeTokens } from "./tokens.contract.js";
import { describeUsage } from "./usage.contract.js";

export interface OpenedStore {
  store: Store;
  /** Opens another instance on the same state, as another process would. */
  reopen: () => Promise<Store>;
  cleanup: () => Promise<void>;
}

/** The tests that every store must pass. They do not depend on where a store keeps its state. */
export function describeStore(name: string, open: () => Promise<OpenedStore>): void {
  describe(`the store (${name})`, () => {
    let store: Store;
    let opened: OpenedStore;

    beforeEach(async () => {
      opened = await open();
      store = opened.store;
    });

    afterEach(async () => {
      await store.close();
      await opened.cleanup();
    });

    describe("registry", () => {
      it("the store returns an empty registry and no warnings before the first write", async () => {
        expect(await store.registry.read()).toEqual({ servers: {} });
        expect(store.takeWarnings()).toEqual([]);
      });

      it("probe() measures how long one operation takes, and leaves nothing in the store", async () => {
        const before = { registry: await store.registry.read(), tokens: await store.tokens.list() };
        await store.probe(); // works even if nothing is stored so far
        await store.registry.update((draft) => void Object.assign(draft.servers, { s1: serverRecord("s1") }));
        const { durationMs, clockAheadMs } = await store.probe();
        expect(durationMs).toBeGreaterThan(0);
        expect(Math.abs(clockAheadMs)).toBeLessThan(60_000);
        await store.registry.update((draft) => void Object.assign(draft, { servers: {} }));
        const after = await opened.reopen();
        expect({ registry: await after.registry.read(), tokens: await after.tokens.list() }).toEqual(before);
        expect(store.takeWarnings()).toEqual([]);
        await after.close();
      });

      it("every instance of the store reads the registry that an update in one instance wrote", async () => {
        const record = serverRecord("s1");
        await store.registry.update((draft) => void Object.assign(draft.servers, { s1: record }));
        expect(await store.registry.read()).toEqual({ servers: { s1: record } });
        const other = await opened.reopen();
        expect(await other.registry.read()).toEqual({ servers: { s1: record } });
        await other.close();
      });

      it("a registry update resolves with the value that its change function returned", async () => {
        expect(await store.registry.update(() => 42)).toBe(42);
        expect(await store.registry.update(() => undefined)).toBeUndefined();
      });

      it("the store writes nothing to the registry when the change throws, and rejects with its error", async () => {
        await addServer(store, "s1");
        const refusal = new Error("no");
        const update = store.registry.update((draft) => {
          delete draft.servers.s1;
          throw refusal;
        });
        await expect(update).rejects.toBe(refusal);
        expect(Object.keys((await store.registry.read()).servers)).toEqual(["s1"]);
      });

      it("the store refuses an asynchronous change to the registry and writes nothing", async () => {
        const update = store.registry.update(async (draft) => {
          draft.servers.s1 = serverRecord("s1");
        });
        await expect(update).rejects.toMatchObject({ code: "FLEET_INTERNAL" });
        expect(await store.registry.read()).toEqual({ servers: {} });
      });

      it("the store returns copies of the registry, so a caller that edits a copy changes nothing", async () => {
        await addServer(store, "s1");
        const kept = await store.registry.update((draft) => draft);
        delete kept.servers.s1;
        const read = await store.registry.read();
        delete read.servers.s1;
        expect(Object.keys((await store.registry.read()).servers)).toEqual(["s1"]);
      });

      it("concurrent registry updates, from one or several instances, run one after another", async () => {
        const others = await Promise.all([opened.reopen(), opened.reopen()]);
        const stores = [store, ...others];
        const counts = await Promise.all(
          Array.from({ length: 60 }, (_, index) =>
            (stores[index % stores.length] ?? store).registry.update((draft) => {
              draft.servers[`s${index}`] = serverRecord(`s${index}`);
              return Object.keys(draft.servers).length;
            }),
          ),
        );
        expect(counts.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 60 }, (_, index) => index + 1));
        expect(Object.keys((await store.registry.read()).servers)).toHaveLength(60);
        await Promise.all(others.map((other) => other.close()));
      });

      it("a failing registry update does not stop other updates that run at the same time", async () => {
        const results = await Promise.allSettled([
          addServer(store, "s1"),
          store.registry.update((draft) => {
            draft.servers.bad = serverRecord("bad");
            throw new Error("only mine");
          }),
          addServer(store, "s2"),
        ]);
        expect(results.map(({ status }) => status)).toEqual(["fulfilled", "rejected", "fulfilled"]);
        expect(Object.keys((await store.registry.read()).servers).toSorted()).toEqual(["s1", "s2"]);
      });

      it("the store keeps servers whose ids are names of object properties, such as __proto__", async () => {
        expect((await store.registry.read()).servers.constructor).toBeUndefined();
        for (const id of ["__proto__", "constructor", "toString"]) {
          await store.registry.update((draft) => {
            expect(draft.servers[id]).toBeUndefined();
            draft.servers[id] = serverRecord(id);
          });
        }
        const { servers } = await store.registry.read();
        expect(Object.keys(servers).toSorted()).toEqual(["__proto__", "constructor", "toString"]);
        expect(Reflect.get(servers, "__proto__")).toEqual(serverRecord("__proto__"));
      });
    });

    describe("sessions", () => {
      it("the store lists no sessions before the first one is created", async () => {
        expect(await store.sessions.list()).toEqual([]);
        expect(await store.sessions.read("nobody")).toBeNull();
      });

      it("the store returns a session record to every instance exactly as it was created", async () => {
        const record = sessionRecord("a", { purpose: "ünïcode \u2028 \u0000", ttlMs: 1 });
        await store.sessions.create(record);
        const other = await opened.reopen();
        expect(await other.sessions.read("a")).toEqual(record);
        expect(await other.sessions.list()).toEqual([record]);
        await other.close();
      });

      it("the store creates exactly one session when several owners create the same id at the same time", async () => {
        const owners = Array.from({ length: 8 }, (_, index) => `user${index}`);
        const results = await Promise.allSettled(
          owners.map((owner) => store.sessions.create(sessionRecord("a", { owner }))),
        );
        const winners = owners.filter((_, index) => results[index]?.status === "fulfilled");
        expect(winners).toHaveLength(1);
        for (const result of results) {
          if (result.status === "rejected") expect(result.reason).toMatchObject({ code: "FLEET_SESSION_EXISTS" });
        }
        expect((await store.sessions.read("a"))?.owner).toBe(winners[0]);
      });

      it("the store updates one session record and leaves the others unchanged", async () => {
        await store.sessions.create(sessionRecord("a"));
        await store.sessions.create(sessionRecord("b"));
        expect(await store.sessions.update("a", (draft) => ++draft.turns)).toBe(1);
        expect((await store.sessions.read("a"))?.turns).toBe(1);
        expect((await store.sessions.read("b"))?.turns).toBe(0);
      });

      it("the store loses no update when two instances update one session record concurrently", async () => {
        await store.sessions.create(sessionRecord("a"));
        const other = await opened.reopen();
        const stores = [store, other];
        await Promise.all(
          Array.from({ length: 40 }, (_, index) =>
            (stores[index % 2] ?? store).sessions.update("a", (draft) => void draft.turns++),
          ),
        );
        expect((await store.sessions.read("a"))?.turns).toBe(40);
        await other.close();
      });

      it("the store writes nothing to a session record when the change throws", async () => {
        await store.sessions.create(sessionRecord("a"));
        const update = store.sessions.update("a", (draft) => {
          draft.turns = 7;
          throw new Error("no");
        });
        await expect(update).rejects.toThrow("no");
        expect((await store.sessions.read("a"))?.turns).toBe(0);
      });

      it("the store rejects with FLEET_SESSION_NOT_FOUND when the session of an update does not exist", async () => {
        const update = store.sessions.update("nobody", (draft) => void draft.turns++);
        await expect(update).rejects.toMatchObject({ code: "FLEET_SESSION_NOT_FOUND" });
      });

      it("when two calls delete a session at once, exactly one of them returns true", async () => {
        await store.sessions.create(sessionRecord("a"));
        const results = await Promise.all([store.sessions.delete("a"), store.sessions.delete("a")]);
        expect(results.toSorted()).toEqual([false, true]);
        expect(await store.sessions.read("a")).toBeNull();
        expect(await store.sessions.list()).toEqual([]);
        expect(await store.sessions.delete("a")).toBe(false);
      });

      it("a session that is created with the id of a deleted session has no data of the old record", async () => {
        await store.sessions.create(sessionRecord("a", { turns: 9 }));
        await store.sessions.delete("a");
        await store.sessions.create(sessionRecord("a", { owner: "bob" }));
        expect(await store.sessions.read("a")).toEqual(sessionRecord("a", { owner: "bob" }));
        expect(await store.sessions.update("a", (draft) => ++draft.turns)).toBe(1);
      });

      it("deleteMany() deletes only the sessions that the caller's check accepts, and returns their ids", async () => {
        for (const [id, turns] of [
          ["a", 1],
          ["b", 2],
          ["c", 1],
        ] as const) {
          await store.sessions.create(sessionRecord(id, { turns }));
        }
        const deleted = await store.sessions.deleteMany(["a", "b", "c", "nobody"], ({ turns }) => turns === 1);
        expect(deleted.toSorted()).toEqual(["a", "c"]);
        expect(await store.sessions.list()).toEqual([sessionRecord("b", { turns: 2 })]);
        expect(await store.sessions.read("a")).toBeNull();
        await expect(store.sessions.update("a", () => 1)).rejects.toMatchObject({ code: "FLEET_SESSION_NOT_FOUND" });
        await store.sessions.create(sessionRecord("a"));
        expect(await store.sessions.read("a")).toEqual(sessionRecord("a"));
        expect(await store.sessions.deleteMany([], () => true)).toEqual([]);
      });

      it("the store deletes each session exactly once when two instances delete many at the same time", async () => {
        const other = await opened.reopen();
        const ids = Array.from({ length: 30 }, (_, index) => `s${index}`);
        for (const id of ids) await store.sessions.create(sessionRecord(id));
        const both = await Promise.all([store, other].map((each) => each.sessions.deleteMany(ids, () => true)));
        expect(both.flat().toSorted()).toEqual(ids.toSorted());
        expect(await other.sessions.list()).toEqual([]);
        await other.close();
      });

      it("the store either deletes or updates each session when two instances do both at the same time", async () => {
        const other = await opened.reopen();
        const ids = Array.from({ length: 30 }, (_, index) => `s${index}`);
        for (const id of ids) await store.sessions.create(sessionRecord(id));
        const changing = ids.map((id) =>
          other.sessions
            .update(id, (draft) => ++draft.turns)
            .then(
              () => [id],
              () => [],
            ),
        );
        const deleted = await store.sessions.deleteMany(ids, ({ turns }) => turns === 0);
        const changed = (await Promise.all(changing)).flat();
        expect([...deleted, ...changed].toSorted()).toEqual(ids.toSorted());
        expect((await store.sessions.list()).map(({ id }) => id).toSorted()).toEqual(changed.toSorted());
        await other.close();
      });

      it("deleteMany() deletes nothing when the caller's check throws, and rejects with that error", async () => {
        await store.sessions.create(sessionRecord("a"));
        const look = () => {
          throw new Error("no");
        };
        await expect(store.sessions.deleteMany(["a"], look)).rejects.toThrow("no");
        expect(await store.sessions.read("a")).toEqual(sessionRecord("a"));
      });

      it("the store counts the sessions of each owner and of all owners after creations and deletions", async () => {
        const other = await opened.reopen();
        const count = async () =>
          await Promise.all(["alice", "bob", "carol", null].map((user) => other.sessions.count(user)));
        expect(await count()).toEqual([0, 0, 0, 0]);
        for (const id of ["a", "b", "c", "d"]) await store.sessions.create(sessionRecord(id));
        await expect(store.sessions.create(sessionRecord("a", { owner: "bob" }))).rejects.toThrow();
        await store.sessions.create(sessionRecord("e", { owner: "bob", members: ["carol"] }));
        await store.sessions.update("b", (draft) => void draft.members.push("carol"));
        expect(await count()).toEqual([4, 1, 0, 5]);
        expect(await store.sessions.delete("a")).toBe(true);
        expect(await store.sessions.delete("a")).toBe(false);
        expect(await store.sessions.deleteMany(["b", "c", "e"], ({ id }) => id !== "c")).toEqual(["b", "e"]);
        expect(await count()).toEqual([2, 0, 0, 2]);
        // Another user may take the id of a deleted session.
        await store.sessions.create(sessionRecord("b", { owner: "bob" }));
        expect(await count()).toEqual([2, 1, 0, 3]);
        await other.close();
      });

      it("the store lists the session ids of each owner and of all owners after creations and deletions", async () => {
        const ids = async (owner: string | null) => (await store.sessions.ids(owner)).toSorted();
        expect(await ids(null)).toEqual([]);
        for (const id of ["a", "b", "c"]) await store.sessions.create(sessionRecord(id));
        await store.sessions.create(sessionRecord("d", { owner: "bob", members: ["alice"] }));
        await store.sessions.delete("a");
        await store.sessions.deleteMany(["b"], () => true);
        expect([await ids(null), await ids("alice"), await ids("bob"), await ids("carol")]).toEqual([
          ["c", "d"],
          ["c"],
          ["d"],
          [],
        ]);
      });

      it("the store treats session ids that differ only in case as different, or refuses the second one", async () => {
        await store.sessions.create(sessionRecord("Abc"));
        const second = await store.sessions.create(sessionRecord("abc", { owner: "bob" })).then(
          () => "created",
          (error: { code: string }) => error.code,
        );
        expect(["created", "FLEET_SESSION_EXISTS"]).toContain(second);
        expect((await store.sessions.read("Abc"))?.owner).toBe("alice");
        expect((await store.sessions.read("abc"))?.owner).toBe(second === "created" ? "bob" : undefined);
      });

      it.each([".hidden", "..x", ".tmp-1-ab", ".trash-1-ab", "a.b_c-d", "constructor", "-", "x".repeat(128)])(
        "the store creates, updates and deletes a session with the id %s",
        async (id) => {
          await store.sessions.create(sessionRecord(id));
          // A registry write may delete leftovers. It must not mistake a session with such an id for a leftover.
          await addServer(store, "s1");
          expect(await store.sessions.update(id, (draft) => ++draft.turns)).toBe(1);
          expect(await store.sessions.list()).toEqual([sessionRecord(id, { turns: 1 })]);
          expect(await store.sessions.delete(id)).toBe(true);
        },
      );

      it.each(["", ".", "..", "../x", "a/b", "a\\b", "a b", "a\0", "ä", "x".repeat(129), "%2e"])(
        "the store refuses the session id %j in every operation",
        async (id) => {
          const refusal = { code: "FLEET_USAGE_INVALID", exit: 2 };
          await expect(store.sessions.create(sessionRecord(id))).rejects.toMatchObject(refusal);
          await expect(store.sessions.read(id)).rejects.toMatchObject(refusal);
          await expect(store.sessions.update(id, () => undefined)).rejects.toMatchObject(refusal);
          await expect(store.sessions.delete(id)).rejects.toMatchObject(refusal);
          expect(await store.sessions.list()).toEqual([]);
        },
      );

      it("the store refuses an update that changes the id of a session", async () => {
        await store.sessions.create(sessionRecord("a"));
        const update = store.sessions.update("a", (draft) => {
          draft.id = "b";
        });
        await expect(update).rejects.toMatchObject({ code: "FLEET_INTERNAL" });
        expect(await store.sessions.list()).toEqual([sessionRecord("a")]);
      });
    });

    describe("leases", () => describeLeases(() => ({ store, reopen: opened.reopen })));
    describe("limits", () => {
      const at = () => ({ store, reopen: opened.reopen });
      describeLimits(at);
      describeSlots(at);
    });
    describe("tokens", () => describeTokens(() => ({ store, reopen: opened.reopen })));

    describe("usage", () => describeUsage(() => ({ store, reopen: opened.reopen })));

    describe("placements", () => {
      it("the store records each user's last placement, and ignores a change that expects an older one", async () => {
        expect(await store.placements.read("alice")).toBeNull();
        expect(await store.placements.record("alice", null, { serverId: "shared-1" })).toEqual({
          serverId: "shared-1",
        });
        await store.placements.record("Alice", null, { serverId: "shared-2" });
        const other = await opened.reopen();
        expect(await other.placements.read("alice")).toEqual({ serverId: "shared-1" });
        expect(await other.placements.read("Alice")).toEqual({ serverId: "shared-2" });
        const [first, third] = [{ serverId: "shared-1" }, { host: "h", serverId: "shared-3" }];
        await other.placements.record("alice", first, third);
        expect(await store.placements.read("alice")).toEqual(third);
        // A call whose expected placement is no longer recorded moves nobody.
        expect(await store.placements.record("alice", first, { serverId: "shared-4" })).toEqual(third);
        expect(await store.placements.record("alice", null, { serverId: "shared-4" })).toEqual(third);
        expect(await store.placements.read("bob")).toBeNull();
        const all = (await store.placements.list()).sort((a, b) => (a.user < b.user ? -1 : 1));
        expect(all).toEqual([
          { user: "Alice", placement: { serverId: "shared-2" } },
          { user: "alice", placement: third },
        ]);
        await store.placements.delete("alice");
        await store.placements.delete("nobody");
        expect(await other.placements.read("alice")).toBeNull();
        expect(await other.placements.list()).toHaveLength(1);
        await other.close();
      });
    });

    describe("placements of one user by two processes", () => {
      it("two instances that place a new user at the same time both get the recorded placement", async () => {
        const other = await opened.reopen();
        for (let round = 0; round < 20; round++) {
          const user = `user-${round}`;
          const [mine, theirs] = await Promise.all([
            store.placements.record(user, null, { serverId: "shared-1" }),
            other.placements.record(user, null, { serverId: "shared-2" }),
          ]);
          expect(mine).toEqual(theirs);
          expect(await store.placements.read(user)).toEqual(mine);
        }
        await other.close();
      });
    });

    describe("purges", () => {
      it("a second begin() of a purge keeps the first start time, and done() for the last host ends it", async () => {
        const purge = { user: "alice", begunAt: "2026-01-01T00:00:00.000Z", pending: [null] };
        expect(await store.purges.read("alice")).toBeNull();
        expect(await store.purges.begin(purge)).toEqual(purge);
        const other = await opened.reopen();
        expect(await other.purges.begin({ ...purge, begunAt: "2026-02-01T00:00:00.000Z" })).toEqual(purge);
        expect(await other.purges.list()).toEqual([purge]);
        expect(await other.purges.read("Alice")).toBeNull();
        await other.purges.done("alice", null);
        await other.purges.done("nobody", null);
        expect(await store.purges.read("alice")).toBeNull();
        expect(await store.purges.list()).toEqual([]);
        await other.close();
      });
    });

    describe("keyed turns", () => {
      it("the store records each Idempotency-Key of a user once, and shows its latest record", async () => {
        const record = keyedTurn("alice", "k1");
        expect(await store.keyedTurns.read("alice", "k1")).toBeNull();
        expect(await store.keyedTurns.create(record)).toBe(true);
        expect(await store.keyedTurns.create({ ...record, digest: "other" })).toBe(false);
        const other = await opened.reopen();
        expect(await other.keyedTurns.read("alice", "k1")).toEqual(record);
        const ended = { ...record, messageId: "m1", outcome: "answered" as const };
        await other.keyedTurns.replace(ended);
        expect(await store.keyedTurns.read("alice", "k1")).toEqual(ended);
        expect(await store.keyedTurns.read("alice", "K1")).toBeNull();
        expect(await store.keyedTurns.read("Alice", "k1")).toBeNull();
        await other.close();
      });

      it("the store counts, lists and deletes the Idempotency-Keys of each user", async () => {
        for (const [user, key] of [
          ["alice", "k1"],
          ["alice", "k2"],
          ["bob", "k1"],
        ] as const)
          await store.keyedTurns.create(keyedTurn(user, key));
        expect([await store.keyedTurns.count("alice"), await store.keyedTurns.count("carol")]).toEqual([2, 0]);
        const keysOf = async (user: string | null) =>
          (await store.keyedTurns.list(user)).map((each) => `${each.user} ${each.key}`).sort();
        expect(await keysOf("alice")).toEqual(["alice k1", "alice k2"]);
        expect(await keysOf(null)).toEqual(["alice k1", "alice k2", "bob k1"]);
        await store.keyedTurns.delete("alice", "k1");
        await store.keyedTurns.delete("alice", "k1");
        expect(await keysOf(null)).toEqual(["alice k2", "bob k1"]);
        expect(await store.keyedTurns.count("alice")).toBe(1);
      });
    });

    it("close() waits until all running writes are finished", async () => {
      const writes = [addServer(store, "s1"), addServer(store, "s2")];
      await store.close();
      const other = await opened.reopen();
      expect(Object.keys((await other.registry.read()).servers)).toEqual(["s1", "s2"]);
      await other.close();
      await Promise.all(writes);
    });
  });
}

function addServer(store: Store, id: string): Promise<void> {
  return store.registry.update((draft) => {
    draft.servers[id] = serverRecord(id);
  });
}
