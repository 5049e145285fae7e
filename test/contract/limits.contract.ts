import { expect, it } from "vitest";
import type { Store } from "../../src/store/ports.js";

/** The tests of the limits of single users. */
export function describeLimits(opened: () => { store: Store; reopen: () => Promise<Store> }): void {
  it("keeps a user's own limits and groups apart, and shows them to other instances", async () => {
    const { store, reopen } = opened();
    expect(await store.limits.read("alice")).toBeNull();
    await store.limits.set("alice", (before) => ({ ...before, sessions: 5 }));
    await store.limits.noteGroups("alice", ["interns"]);
    await store.limits.set("alice", (before) => ({ ...before, tokensPerDay: null }));
    const other = await reopen();
    const all = { user: "alice", limits: { sessions: 5, tokensPerDay: null }, groups: ["interns"] };
    expect(await other.limits.read("alice")).toEqual(all);
    expect(await store.limits.read("alice")).toEqual(all);
    expect(await store.limits.read("Alice")).toBeNull();
    await other.close();
  });

  it("clears a user's own limits and leaves the groups, and forgets users with neither", async () => {
    const { store } = opened();
    expect(await store.limits.clear("alice")).toBe(false);
    await store.limits.set("alice", () => ({ sessions: 5 }));
    await store.limits.noteGroups("alice", ["interns"]);
    expect(await store.limits.clear("alice")).toBe(true);
    expect(await store.limits.clear("alice")).toBe(false);
    expect(await store.limits.read("alice")).toEqual({ user: "alice", limits: {}, groups: ["interns"] });
    await store.limits.noteGroups("alice", []);
    expect(await store.limits.read("alice")).toBeNull();
  });
}
