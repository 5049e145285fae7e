import { expect, it } from "vitest";
import { USER_LIMITS } from "../../src/base/user-limits.js";
import type { Store } from "../../src/store/store.js";
import { sessionRecord } from "../fixtures/store/store-records.js";

/** The tests of the limits that are set for single users. */
export function describeLimits(opened: () => { store: Store; reopen: () => Promise<Store> }): void {
  it("the store records a user's limits and groups independently, and shows both to other instances", async () => {
    const { store, reopen } = opened();
    expect(await store.limits.read("alice")).toBeNull();
    await store.limits.set("alice", ({ limits }) => ({ limits: { ...limits, sessions: 5 } }));
    await store.limits.noteGroups("alice", ["interns"]);
    await store.limits.set("alice", ({ limits }) => ({ limits: { ...limits, tokensPerDay: null } }));
    const other = await reopen();
    const all = { user: "alice", limits: { sessions: 5, tokensPerDay: null }, groups: ["interns"] };
    expect(await other.limits.read("alice")).toEqual(all);
    expect(await store.limits.read("alice")).toEqual(all);
    expect(await store.limits.read("Alice")).toBeNull();
    await store.limits.noteGroups("bob", ["interns"]);
    expect((await other.limits.list()).sort((a, b) => a.user.localeCompare(b.user))).toEqual([
      all,
      { user: "bob", limits: {}, groups: ["interns"] },
    ]);
    await other.close();
  });

  it("the store loses no change when several instances change a user's limits at the same time", async () => {
    const { store, reopen } = opened();
    const other = await reopen();
    const set = async (name: string, at: Store) =>
      await at.limits.set("alice", ({ limits }) => ({ limits: { ...limits, [name]: 5 } }));
    await Promise.all(USER_LIMITS.map(async (name, at) => await set(name, at % 2 === 0 ? store : other)));
    const fresh = await reopen();
    const limits = Object.fromEntries(USER_LIMITS.map((name) => [name, 5]));
    expect(await fresh.limits.read("alice")).toEqual({ user: "alice", limits, groups: [] });
    for (const each of [other, fresh]) await each.close();
  });

  it("a suspension stays when limits are set or cleared or groups are noted, until set() or forget() removes it", async () => {
    const { store } = opened();
    const suspended = { since: "2026-01-01T00:00:00.000Z", reason: "lost laptop" };
    await store.limits.set("alice", (own) => ({ ...own, suspended }));
    expect(await store.limits.read("alice")).toEqual({ user: "alice", limits: {}, groups: [], suspended });
    await store.limits.set("alice", (own) => ({ ...own, limits: { sessions: 5 } }));
    await store.limits.noteGroups("alice", ["interns"]);
    expect(await store.limits.clear("alice")).toBe(true);
    await store.limits.noteGroups("alice", []);
    expect(await store.limits.list()).toEqual([{ user: "alice", limits: {}, groups: [], suspended }]);
    await store.limits.set("alice", ({ limits }) => ({ limits }));
    expect(await store.limits.read("alice")).toBeNull();
    await store.limits.set("alice", (own) => ({ ...own, suspended }));
    await store.limits.forget("alice");
    expect(await store.limits.read("alice")).toBeNull();
  });

  it("clear() removes a user's limits but not the groups, and a record with neither is deleted", async () => {
    const { store } = opened();
    expect(await store.limits.clear("alice")).toBe(false);
    await store.limits.set("alice", () => ({ limits: { sessions: 5 } }));
    await store.limits.noteGroups("alice", ["interns"]);
    expect(await store.limits.clear("alice")).toBe(true);
    expect(await store.limits.clear("alice")).toBe(false);
    expect(await store.limits.read("alice")).toEqual({ user: "alice", limits: {}, groups: ["interns"] });
    await store.limits.noteGroups("alice", []);
    expect(await store.limits.read("alice")).toBeNull();
    await store.limits.set("alice", () => ({ limits: { sessions: 5 } }));
    await store.limits.set("alice", () => ({ limits: {} }));
    expect(await store.limits.read("alice")).toBeNull();
    expect(await store.limits.clear("alice")).toBe(false);
  });
}

const MINUTE = { perMinute: null, kind: "turn" } as const;
const ids = (count: number) => Array.from({ length: count }, (_, at) => `slot-${at}`);

/** The tests of the slots that users have in use. */
export function describeSlots(opened: () => { store: Store; reopen: () => Promise<Store> }): void {
  it("the store grants exactly the allowed number of slots when two instances ask for more at once", async () => {
    const { store, reopen } = opened();
    const other = await reopen();
    const ask = async (id: string, at: number) =>
      await (at % 2 === 0 ? store : other).limits.take({ ...MINUTE, user: "alice", id, most: 5 });
    const answers = await Promise.all(ids(64).map(ask));
    expect(answers.filter(({ granted }) => granted)).toHaveLength(5);
    expect(answers.find(({ granted }) => !granted)).toEqual({
      ...{ granted: false, reached: "most", used: 5, retryAfterMs: null },
    });
    expect((await other.limits.used("alice")).concurrentTurns).toBe(5);
    expect(await store.limits.take({ ...MINUTE, user: "bob", id: "b", most: 1 })).toEqual({ granted: true });
    await other.close();
  });

  it("the store grants a slot again after it was given back, even by another instance", async () => {
    const { store, reopen } = opened();
    const other = await reopen();
    for (const id of ids(200)) {
      expect(await store.limits.take({ ...MINUTE, user: "alice", id, most: 1 })).toEqual({ granted: true });
      await other.limits.giveBack({ user: "alice", kind: "turn", id }, true);
    }
    expect(await other.limits.used("alice")).toMatchObject({ concurrentTurns: 0, turnsPerMinute: 200 });
    await other.close();
  });

  it("the store counts turns and prompts of the last minute, but not turns that never began", async () => {
    const { store } = opened();
    const ask = async (id: string, kind: "turn" | "prompt" = "turn") =>
      await store.limits.take({ user: "alice", kind, id, most: null, perMinute: 3 });
    for (const id of ids(2)) await ask(id);
    expect(await ask("further", "prompt")).toEqual({ granted: true });
    const refused = await ask("late");
    expect(refused).toEqual({ granted: false, reached: "perMinute", used: 3, retryAfterMs: expect.any(Number) });
    if (refused.granted) throw new Error("not refused");
    expect(refused.retryAfterMs).toBeGreaterThan(0);
    expect(refused.retryAfterMs).toBeLessThanOrEqual(60_000);
    await store.limits.giveBack({ user: "alice", kind: "turn", id: "slot-0" }, true);
    expect(await ask("still")).toMatchObject({ granted: false });
    await store.limits.giveBack({ user: "alice", kind: "turn", id: "slot-1" }, false);
    expect(await ask("now")).toEqual({ granted: true });
    expect(await store.limits.used("alice")).toMatchObject({ turnsPerMinute: 3, concurrentTurns: 1 });
  });

  it("the store counts each session once, whether it is already recorded or still being recorded", async () => {
    const { store, reopen } = opened();
    const other = await reopen();
    await store.sessions.create(sessionRecord("s0"));
    const ask = async (session: string, at: Store) =>
      await at.limits.take({ user: "alice", kind: "session", id: `${session}~x`, most: 3, perMinute: null });
    expect(await ask("s1", store)).toEqual({ granted: true });
    await store.sessions.create(sessionRecord("s1"));
    expect(await ask("s2", other)).toEqual({ granted: true });
    expect(await ask("s3", store)).toEqual({
      ...{ granted: false, reached: "most", used: 3, retryAfterMs: null },
    });
    await other.limits.giveBack({ user: "alice", kind: "session", id: "s2~x" }, true);
    await store.limits.giveBack({ user: "alice", kind: "session", id: "s1~x" }, true);
    expect(await ask("s4", store)).toEqual({ granted: true });
    await other.close();
  });

  it("isFirst() returns true for only one of several equal calls, and forget() deletes a user's data", async () => {
    const { store, reopen } = opened();
    const other = await reopen();
    const answers = [store, other, store].map(async (at) => await at.limits.isFirst("alice", "tokensPerDay", 5));
    expect((await Promise.all(answers)).filter(Boolean)).toHaveLength(1);
    expect(await other.limits.isFirst("alice", "tokensPerDay", 6)).toBe(true);
    // A late call for the earlier period must not reset the later period.
    expect(await store.limits.isFirst("alice", "tokensPerDay", 5)).toBe(false);
    expect(await store.limits.isFirst("alice", "tokensPerDay", 6)).toBe(false);
    await store.limits.set("alice", () => ({ limits: { sessions: 5 } }));
    await store.limits.take({ ...MINUTE, user: "alice", id: "a", most: 1 });
    await store.limits.forget("alice");
    expect(await other.limits.isFirst("alice", "tokensPerDay", 6)).toBe(true);
    expect(await store.limits.read("alice")).toBeNull();
    expect(await store.limits.used("alice")).toMatchObject({ concurrentTurns: 0 });
    await other.close();
  });
}
