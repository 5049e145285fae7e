import { beforeEach, expect, it } from "vitest";
import type { TokenRecord } from "../../src/base/token.js";
import { issueVisitToken } from "../../src/hosts/calls/control-link.js";
import { issueCode, issueToken, listTokens, redeemCode, revokeTokens } from "../../src/identity/tokens.js";
import type { Store } from "../../src/store/store.js";

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

  it("the store has no tokens before the first one is created", async () => {
    expect(await store.tokens.read("abc")).toBeNull();
    expect(await store.tokens.list()).toEqual([]);
    expect(await store.tokens.delete("abc")).toBe(false);
  });

  it("the store returns each token to every instance with all its fields", async () => {
    const limited = tokenRecord("b2", { user: "zoë", expiresAt: "2030-01-01T00:00:00.000Z" });
    await store.tokens.create(tokenRecord("a1"));
    await store.tokens.create(limited);
    const other = await reopen();
    expect(await other.tokens.read("a1")).toEqual(tokenRecord("a1"));
    expect(await other.tokens.read("b2")).toEqual(limited);
    expect((await other.tokens.list()).map(({ id }) => id).sort()).toEqual(["a1", "b2"]);
    await other.close();
  });

  it("the store gives every instance the same clock for the expiry of tokens", async () => {
    const before = await store.now();
    const other = await reopen();
    const after = await other.now();
    expect(after).toBeGreaterThanOrEqual(before);
    // The tests run on one machine.
    expect(Math.abs(after - Date.now())).toBeLessThan(10_000);
    await other.close();
  });

  it("when several instances redeem a one-time code at once, exactly one of them gets a token", async () => {
    const { token: code } = await issueCode(store, "alice", { scopes: ["read"] });
    const other = await reopen();
    const given = await Promise.all([store, other, other].map(async (each) => await redeemCode(each, code, "alice")));
    expect(given.filter((token) => token !== null)).toEqual([
      expect.objectContaining({ user: "alice", scopes: ["read"], sessionId: null }),
    ]);
    expect(await redeemCode(store, code, "alice")).toBeNull();
    await other.close();
  });

  it("a token that a process made for another host is not listed, but is revoked with the user's tokens", async () => {
    const own = await issueToken(store, "alice", null);
    const visit = await issueVisitToken(store, "alice", "node-2", {});
    expect((await listTokens(store, "alice")).map(({ id }) => id)).toEqual([own.id]);
    expect(new Set(await revokeTokens(store, { user: "alice" }))).toEqual(new Set([own.id, visit.id]));
    expect(await store.tokens.list()).toEqual([]);
  });

  it("the store deletes a revoked token for every instance, and no other token", async () => {
    await store.tokens.create(tokenRecord("a1"));
    await store.tokens.create(tokenRecord("a2"));
    const other = await reopen();
    expect(await other.tokens.delete("a1")).toBe(true);
    expect(await store.tokens.read("a1")).toBeNull();
    expect(await store.tokens.delete("a1")).toBe(false);
    expect((await store.tokens.list()).map(({ id }) => id)).toEqual(["a2"]);
    await other.close();
  });

  it("the store creates exactly one token when several are created with the same id at once", async () => {
    const users = ["ann", "ben", "cid", "dan"];
    const attempts = users.map((user) => store.tokens.create(tokenRecord("same", { user })));
    const outcomes = await Promise.allSettled(attempts);
    expect(outcomes.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    const winner = users[outcomes.findIndex(({ status }) => status === "fulfilled")];
    expect(await store.tokens.read("same")).toMatchObject({ user: winner });
  });

  it("endBy() makes a token expire earlier, but never later, and records its original expiry", async () => {
    const [soon, late] = ["2027-01-01T00:00:00.000Z", "2030-01-01T00:00:00.000Z"];
    await store.tokens.create(tokenRecord("a1"));
    await store.tokens.create(tokenRecord("b2", { expiresAt: late }));
    await store.tokens.create(tokenRecord("c3", { expiresAt: soon }));
    const other = await reopen();
    const ended = tokenRecord("a1", { expiresAt: soon, issuedUntil: null });
    expect(await store.tokens.endBy("a1", soon)).toEqual(ended);
    expect(await other.tokens.read("a1")).toEqual(ended);
    expect(await other.tokens.endBy("b2", soon)).toEqual(tokenRecord("b2", { expiresAt: soon, issuedUntil: late }));
    expect(await other.tokens.endBy("b2", late)).toEqual(tokenRecord("b2", { expiresAt: soon, issuedUntil: late }));
    expect(await store.tokens.endBy("c3", late)).toEqual(tokenRecord("c3", { expiresAt: soon }));
    expect((await store.tokens.list()).map(({ expiresAt }) => expiresAt)).toEqual([soon, soon, soon]);
    expect(await store.tokens.endBy("gone", soon)).toBeNull();
    await other.close();
  });

  it("the store returns the last use of each token to every instance", async () => {
    const at = "2026-02-01T00:00:00.000Z";
    await store.tokens.create(tokenRecord("a1"));
    await store.tokens.create(tokenRecord("b2"));
    await store.tokens.used("a1", "2026-01-31T00:00:00.000Z");
    await store.tokens.used("a1", at);
    const other = await reopen();
    expect(await other.tokens.lastUses(["b2", "a1", "gone", "../x"])).toEqual([null, at, null, null]);
    expect(await other.tokens.lastUses([])).toEqual([]);
    expect(await other.tokens.read("a1")).toEqual(tokenRecord("a1"));
    await other.close();
  });

  it("a token stays revoked even if another instance uses it or sets its expiry at the same moment", async () => {
    const at = "2027-01-01T00:00:00.000Z";
    const other = await reopen();
    for (let round = 0; round < 20; round++) {
      const id = `r${round}`;
      await store.tokens.create(tokenRecord(id));
      await Promise.all([
        other.tokens.used(id, at),
        other.tokens.endBy(id, at),
        store.tokens.delete(id),
        other.tokens.used(id, at),
      ]);
      expect(await store.tokens.read(id)).toBeNull();
      expect(await other.tokens.lastUses([id])).toEqual([null]);
    }
    await store.tokens.used("r0", at);
    expect(await store.tokens.list()).toEqual([]);
    expect(await store.tokens.lastUses(["r0"])).toEqual([null]);
    await other.close();
  });

  it("the store finds and deletes no token under an invalid id, and refuses to create a token with it", async () => {
    for (const id of ["", "../registry", "A", "a/b", "a.b", "__proto__", "*", "x".repeat(65)]) {
      expect(await store.tokens.read(id), id).toBeNull();
      expect(await store.tokens.delete(id), id).toBe(false);
      await expect(store.tokens.create(tokenRecord(id)), id).rejects.toThrow(/not the id of a token/);
    }
    expect(await store.tokens.list()).toEqual([]);
  });
}
