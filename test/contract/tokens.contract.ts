import { beforeEach, expect, it } from "vitest";
import type { TokenRecord } from "../../src/model/token.js";
import type { Store } from "../../src/store/ports.js";

function tokenRecord(id: string, changes: Partial<TokenRecord> = {}): TokenRecord {
  return {
    id,
    user: "alice",
    sha256: "0".repeat(64),
    createdAt: "2026-01-01T00:00:00.000Z",
    expiresAt: null,
    ...changes,
  };
}

/** The tests about the front door's tokens that every store must pass. */
export function describeTokens(current: () => { store: Store; reopen: () => Promise<Store> }): void {
  let store: Store;
  let reopen: () => Promise<Store>;

  beforeEach(() => {
    ({ store, reopen } = current());
  });

  it("has no tokens before the first one is created", async () => {
    expect(await store.tokens.read("abc")).toBeNull();
    expect(await store.tokens.list()).toEqual([]);
    expect(await store.tokens.delete("abc")).toBe(false);
  });

  it("returns each token to every instance with all its fields", async () => {
    const limited = tokenRecord("b2", { user: "zoë", expiresAt: "2030-01-01T00:00:00.000Z" });
    await store.tokens.create(tokenRecord("a1"));
    await store.tokens.create(limited);
    const other = await reopen();
    expect(await other.tokens.read("a1")).toEqual(tokenRecord("a1"));
    expect(await other.tokens.read("b2")).toEqual(limited);
    expect((await other.tokens.list()).map(({ id }) => id).sort()).toEqual(["a1", "b2"]);
    await other.close();
  });

  it("gives every instance the same clock for the expiry of tokens", async () => {
    const before = await store.now();
    const other = await reopen();
    const after = await other.now();
    expect(after).toBeGreaterThanOrEqual(before);
    // The tests run on one machine.
    expect(Math.abs(after - Date.now())).toBeLessThan(10_000);
    await other.close();
  });

  it("deletes a revoked token for every instance, and no other token", async () => {
    await store.tokens.create(tokenRecord("a1"));
    await store.tokens.create(tokenRecord("a2"));
    const other = await reopen();
    expect(await other.tokens.delete("a1")).toBe(true);
    expect(await store.tokens.read("a1")).toBeNull();
    expect(await store.tokens.delete("a1")).toBe(false);
    expect((await store.tokens.list()).map(({ id }) => id)).toEqual(["a2"]);
    await other.close();
  });

  it("creates exactly one token when several are created with the same id at once", async () => {
    const users = ["ann", "ben", "cid", "dan"];
    const attempts = users.map((user) => store.tokens.create(tokenRecord("same", { user })));
    const outcomes = await Promise.allSettled(attempts);
    expect(outcomes.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    const winner = users[outcomes.findIndex(({ status }) => status === "fulfilled")];
    expect(await store.tokens.read("same")).toMatchObject({ user: winner });
  });

  it("finds and deletes no token under an invalid id, and refuses to create a token with it", async () => {
    for (const id of ["", "../registry", "A", "a/b", "a.b", "__proto__", "*", "x".repeat(65)]) {
      expect(await store.tokens.read(id), id).toBeNull();
      expect(await store.tokens.delete(id), id).toBe(false);
      await expect(store.tokens.create(tokenRecord(id)), id).rejects.toThrow(/not the id of a token/);
    }
    expect(await store.tokens.list()).toEqual([]);
  });
}
