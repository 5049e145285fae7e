import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import type { Lease, LeaseRequest } from "../../src/base/session.js";
import type { Store } from "../../src/store/store.js";
import { sessionRecord } from "../fixtures/store/store-records.js";

/*
 * Leases depend on time, and we cannot fake the clock that several processes share. So a TTL is either longer than any
 * test, or so short that the test waits for its end. No assertion depends on how long a step took.
 */

const LONG_MS = 600_000;
const SHORT_MS = 150;
/** The number of steals exceeds the milliseconds that they take. So some of their fences must be ahead of the clock. */
const STEALS = 60;

const LOST = { code: "FLEET_LEASE_LOST", exit: 5 };

interface Stores {
  store: Store;
  reopen: () => Promise<Store>;
}

function request(token: string, over: Partial<LeaseRequest> = {}): LeaseRequest {
  return { sessionId: "a", holder: `holder of ${token}`, token, ttlMs: LONG_MS, placeMs: LONG_MS, ...over };
}

async function granted(store: Store, token: string, over: Partial<LeaseRequest> = {}): Promise<Lease> {
  for (;;) {
    const answer = await store.leases.acquire(request(token, over));
    if (answer.granted) return answer.lease;
    // On a busy machine, a lease with a short TTL may end before the store answers. In that case, ask again.
    if (answer.ahead > 0 || answer.lease !== null) throw new Error(`${token} waits behind ${answer.ahead}`);
  }
}

/** Asks until the store grants the lease. */
async function waited(store: Store, token: string, over: Partial<LeaseRequest> = {}): Promise<Lease> {
  return await expect
    .poll(() => store.leases.acquire(request(token, over)), { timeout: 10_000, interval: 20 })
    .toMatchObject({ granted: true })
    .then(() => granted(store, token, over));
}

/** Call this inside the suite of a store. */
export function describeLeases(stores: () => Stores): void {
  const store = () => stores().store;

  it("the store grants a lease to the first caller, and shows it to every instance without its token", async () => {
    expect(await store().leases.read("a")).toBeNull();
    const before = Date.now();
    const lease = await granted(store(), "t1");
    expect(lease).toEqual({
      sessionId: "a",
      holder: "holder of t1",
      fence: expect.any(Number),
      acquiredAt: expect.any(String),
      expiresAt: new Date(Date.parse(lease.acquiredAt) + LONG_MS).toISOString(),
      remainingMs: expect.any(Number),
      ttlMs: LONG_MS,
      stealReason: null,
    });
    expect(Date.parse(lease.acquiredAt)).toBeGreaterThanOrEqual(before);
    expect(lease.remainingMs).toBeGreaterThan(LONG_MS - 60_000);
    expect(lease.remainingMs).toBeLessThanOrEqual(LONG_MS);

    const since = performance.now();
    const other = await stores().reopen();
    await sleep(50);
    const passedMs = performance.now() - since;
    const seen = await other.leases.read("a");
    expect(seen).toEqual({ ...lease, remainingMs: expect.any(Number) });
    // The remaining time has shrunk by at least the time that has passed. Compare with the TTL, because the remaining
    // time in `lease` already lacks the time that its answer took.
    expect(seen?.remainingMs).toBeLessThanOrEqual(LONG_MS - passedMs + 1);
    expect(await other.leases.check("a", "t1")).toMatchObject({ fence: lease.fence });
    await other.close();
  });

  it("the store shows a lease as detached until it ends, and does not show the next lease as detached", async () => {
    expect(await granted(store(), "t1", { detached: true })).toMatchObject({ detached: true });
    expect(await store().leases.renew("a", "t1", LONG_MS)).toMatchObject({ detached: true });
    expect(await store().leases.read("a")).toMatchObject({ detached: true });
    const answer = await store().leases.acquire(request("t2"));
    expect(answer).toMatchObject({ granted: false, lease: { detached: true } });
    await store().leases.release("a", "t1");
    expect(await granted(store(), "t2")).not.toHaveProperty("detached");
    expect(await store().leases.read("a")).not.toHaveProperty("detached");
  });

  it("a repeated lease request of the holder or of a waiter gets the same answer as the first", async () => {
    const lease = await granted(store(), "t1");
    expect(await granted(store(), "t1")).toMatchObject({ fence: lease.fence, acquiredAt: lease.acquiredAt });
    await store().leases.acquire(request("t2"));
    const second = { granted: false, ahead: 1 };
    expect(await store().leases.acquire(request("t3"))).toMatchObject(second);
    expect(await store().leases.acquire(request("t3"))).toMatchObject(second);
  });

  it("the store shows each waiter the lease in force and the number of waiters ahead of this one", async () => {
    const lease = await granted(store(), "t1");
    for (const [ahead, token] of ["t2", "t3", "t4"].entries()) {
      expect(await store().leases.acquire(request(token))).toEqual({
        granted: false,
        ahead,
        lease: { ...lease, remainingMs: expect.any(Number) },
      });
    }
  });

  it("waiters get a lease in the order of their first requests, even if a later waiter asks first", async () => {
    const other = await stores().reopen();
    await granted(store(), "t1");
    const tokens = ["t2", "t3", "t4", "t5"];
    for (const token of tokens) await other.leases.acquire(request(token));
    const fences = [];
    for (let holder = "t1", left = tokens; left.length > 0; left = left.slice(1)) {
      await store().leases.release("a", holder);
      expect(await store().leases.read("a")).toBeNull();
      // A newcomer asks first, then the waiters in reverse order.
      for (const token of ["newcomer", ...left.slice(1).toReversed()]) {
        expect(await store().leases.acquire(request(token))).toMatchObject({ granted: false, lease: null });
      }
      holder = left[0] ?? "";
      fences.push((await granted(other, holder)).fence);
      await store().leases.leave("a", "newcomer");
    }
    expect(fences).toEqual(fences.toSorted((a, b) => a - b));
    expect(new Set(fences).size).toBe(fences.length);
    await other.close();
  });

  it("leave() removes a waiter from the lease queue, and ignores a token that is not in the queue", async () => {
    await granted(store(), "t1");
    await store().leases.acquire(request("t2"));
    await store().leases.leave("a", "t2");
    await store().leases.leave("a", "t2");
    await store().leases.leave("nobody", "t2");
    expect(await store().leases.acquire(request("t3"))).toMatchObject({ granted: false, ahead: 0 });
    await store().leases.release("a", "t1");
    await granted(store(), "t3");
  });

  it("leave() does not end a lease if the lease's holder calls it", async () => {
    await granted(store(), "t1");
    await store().leases.leave("a", "t1");
    expect(await store().leases.check("a", "t1")).toMatchObject({ holder: "holder of t1" });
  });

  it("a waiter that stops asking loses its place in the lease queue, and other waiters keep theirs", async () => {
    await granted(store(), "t1");
    await store().leases.acquire(request("silent", { placeMs: SHORT_MS }));
    await store().leases.acquire(request("asking", { placeMs: 4 * SHORT_MS }));
    await store().leases.release("a", "t1");
    await waited(store(), "asking", { placeMs: 4 * SHORT_MS });
    expect(await store().leases.acquire(request("silent"))).toMatchObject({ granted: false, ahead: 0 });
  });

  it("the store ends a lease at its TTL, even for its holder, and grants the lease to the next waiter", async () => {
    const first = await granted(store(), "t1", { ttlMs: SHORT_MS });
    const second = await waited(store(), "t2");
    expect(second.fence).toBeGreaterThan(first.fence);
    await expect(store().leases.check("a", "t1")).rejects.toMatchObject(LOST);
    await expect(store().leases.renew("a", "t1", LONG_MS)).rejects.toMatchObject(LOST);
    await expect(store().leases.release("a", "t1")).rejects.toMatchObject(LOST);
    expect(await store().leases.read("a")).toMatchObject({ holder: "holder of t2" });
  });

  it("the store ends a lease at its TTL even if nobody else asks for it", async () => {
    const first = await granted(store(), "t1", { ttlMs: SHORT_MS });
    await expect.poll(() => store().leases.read("a"), { timeout: 10_000, interval: 20 }).toBeNull();
    await expect(store().leases.check("a", "t1")).rejects.toMatchObject(LOST);
    await expect(store().leases.renew("a", "t1", LONG_MS)).rejects.toMatchObject(LOST);
    await expect(store().leases.release("a", "t1")).rejects.toMatchObject(LOST);
    // A request with the same token now counts as a new request.
    expect((await granted(store(), "t1")).fence).toBeGreaterThan(first.fence);
  });

  it("a lease that its holder renews lasts beyond its first TTL and keeps its fence", async () => {
    // The TTL is far longer than a renewal takes, and ends before the test does. Only the renewal can keep the lease.
    const first = await granted(store(), "t1", { ttlMs: 4_000 });
    const renewed = await store().leases.renew("a", "t1", LONG_MS);
    expect(renewed).toMatchObject({ fence: first.fence, acquiredAt: first.acquiredAt, ttlMs: LONG_MS });
    expect(renewed.remainingMs).toBeGreaterThan(4_000);
    expect(Date.parse(renewed.expiresAt)).toBeGreaterThan(Date.parse(first.expiresAt));
    await new Promise((resolve) => setTimeout(resolve, 4_100));
    expect(await store().leases.check("a", "t1")).toMatchObject({ fence: first.fence });
  });

  it("the store refuses to check, renew or release a lease with any token but the holder's", async () => {
    const lease = await granted(store(), "t1");
    for (const wrong of ["t2", "", "t11", "T1", lease.holder, String(lease.fence)]) {
      await expect(store().leases.check("a", wrong)).rejects.toMatchObject(LOST);
      await expect(store().leases.renew("a", wrong, 1)).rejects.toMatchObject(LOST);
      await expect(store().leases.release("a", wrong)).rejects.toMatchObject(LOST);
    }
    expect(await store().leases.check("a", "t1")).toMatchObject({ fence: lease.fence, ttlMs: LONG_MS });
  });

  it("the store refuses to check, renew or release a lease on a session that never had one", async () => {
    await expect(store().leases.check("a", "t1")).rejects.toMatchObject(LOST);
    await expect(store().leases.renew("a", "t1", LONG_MS)).rejects.toMatchObject(LOST);
    await expect(store().leases.release("a", "t1")).rejects.toMatchObject(LOST);
    expect(await store().leases.read("a")).toBeNull();
  });

  it("the store gives a lease at once to a caller that steals it, and keeps the waiters in their order", async () => {
    const first = await granted(store(), "t1");
    await store().leases.acquire(request("t2"));
    const steal = { reason: "the holder went home" };
    const stolen = await granted(store(), "thief", { steal });
    expect(stolen).toMatchObject({ holder: "holder of thief", stealReason: steal.reason });
    expect(stolen.fence).toBeGreaterThan(first.fence);
    expect(await granted(store(), "thief", { steal })).toMatchObject({ fence: stolen.fence });
    await expect(store().leases.check("a", "t1")).rejects.toMatchObject(LOST);
    expect(await store().leases.read("a")).toMatchObject({ stealReason: steal.reason });
    expect(await store().leases.acquire(request("t2"))).toMatchObject({ granted: false, ahead: 0 });
    await store().leases.release("a", "thief");
    expect(await granted(store(), "t2")).toMatchObject({ stealReason: null });
  });

  it("the store records no steal reason when a caller steals a lease that nobody holds", async () => {
    expect(await granted(store(), "t1", { steal: { reason: "to be sure" } })).toMatchObject({ stealReason: null });
  });

  it("the store grants a lease to exactly one of many callers that ask at once in several instances", async () => {
    const all = [store(), await stores().reopen(), await stores().reopen()];
    const tokens = Array.from({ length: 24 }, (_, index) => `t${index}`);
    const answers = await Promise.all(
      tokens.map((token, index) => (all[index % all.length] ?? store()).leases.acquire(request(token))),
    );
    expect(answers.filter((answer) => answer.granted)).toHaveLength(1);
    const ahead = answers.flatMap((answer) => (answer.granted ? [] : answer.ahead));
    expect(ahead.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 23 }, (_, index) => index));
    await Promise.all(all.slice(1).map((one) => one.close()));
  });

  it("when the lease on one session changes hands, the lease on another session stays in force", async () => {
    await granted(store(), "t1");
    await granted(store(), "t1", { sessionId: "b" });
    await store().leases.release("b", "t1");
    await granted(store(), "t2", { sessionId: "b" });
    expect(await store().leases.check("a", "t1")).toMatchObject({ sessionId: "a" });
  });

  it("the store ends a lease when its session is deleted, and gives later leases on the id higher fences", async () => {
    let fence = 0;
    for (let round = 0; round < 6; round++) {
      await store().sessions.create(sessionRecord("a"));
      const token = `t${round}`;
      const lease = await granted(store(), token);
      expect(lease.fence).toBeGreaterThan(fence);
      // These steals come faster than the clock ticks.
      const stolen = await Promise.all(
        Array.from({ length: STEALS }, (_, n) => granted(store(), `${token}.${n}`, { steal: { reason: "again" } })),
      );
      fence = Math.max(...stolen.map((one) => one.fence));
      expect(new Set(stolen.map((one) => one.fence)).size).toBe(STEALS);
      await store().leases.acquire(request("waiter"));
      await store().sessions.delete("a");
      expect(await store().leases.read("a")).toBeNull();
      await expect(store().leases.check("a", `${token}.${STEALS - 1}`)).rejects.toMatchObject(LOST);
    }
  });

  it("highestFence() returns the highest fence so far; after raiseFences(n), leases get fences above n", async () => {
    expect(await store().leases.highestFence()).toBe(0);
    const { fence } = await granted(store(), "t1");
    const later = await granted(store(), "t1", { sessionId: "b" });
    expect(await store().leases.highestFence()).toBeGreaterThanOrEqual(Math.max(fence, later.fence));
    const raised = (await store().leases.highestFence()) + 40;
    await store().leases.raiseFences(raised);
    await store().leases.raiseFences(1);
    for (const sessionId of ["a", "b", "c"]) {
      const lease = await granted(store(), "t2", { sessionId, steal: { reason: "to see its fence" } });
      expect(lease.fence).toBeGreaterThan(raised);
    }
  });

  it.each(["", "..", "../x", "a/b", "a\0"])("each lease call refuses the session id %j", async (sessionId) => {
    const refusal = { code: "FLEET_USAGE_INVALID" };
    await expect(store().leases.acquire(request("t1", { sessionId }))).rejects.toMatchObject(refusal);
    await expect(store().leases.read(sessionId)).rejects.toMatchObject(refusal);
    await expect(store().leases.check(sessionId, "t1")).rejects.toMatchObject(refusal);
    await expect(store().leases.renew(sessionId, "t1", 1)).rejects.toMatchObject(refusal);
    await expect(store().leases.release(sessionId, "t1")).rejects.toMatchObject(refusal);
    await expect(store().leases.leave(sessionId, "t1")).rejects.toMatchObject(refusal);
  });

  it.each([".hidden", ".tmp-1-ab", ".trash-1-ab", "constructor", "-", "x".repeat(128)])(
    "the store grants a lease on a session with the id %s",
    async (sessionId) => {
      await granted(store(), "t1", { sessionId });
      await store().registry.update((draft) => void Object.assign(draft, { servers: {} }));
      expect(await store().leases.read(sessionId)).toMatchObject({ sessionId });
      await store().leases.release(sessionId, "t1");
    },
  );
}
