import { describe, expect, it } from "vitest";
import { FleetError } from "../../src/base/errors.js";
import { type AcquireOptions, type HeldLease, LEASE_VARIABLES, Leases } from "../../src/sessions/leases.js";
import { openStore, type Store } from "../../src/store/store.js";
import { TestClock } from "../fixtures/fleets/test-clock.js";
import { altered } from "../fixtures/store/altered-store.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const LOST = { code: "FLEET_LEASE_LOST", exit: 5 };
const LONG_MS = 600_000;
const TTL_MS = 1_000;

/** Leases whose store and holders share a clock that the test advances. */
async function setUp(): Promise<{ store: Store; leases: Leases; clock: TestClock }> {
  const clock = new TestClock();
  const store = openStore("file", await temporaryRoot(), { clock: clock.ofStore });
  return { store, leases: new Leases(store, clock), clock };
}

/** Leases in real time, for tests of waiters, because a test clock does not control in which order waiters ask. */
async function setUpInRealTime(): Promise<{ store: Store; leases: Leases }> {
  const store = openStore("file", await temporaryRoot());
  return { store, leases: new Leases(store) };
}

function wants(holder: string, over: Partial<AcquireOptions> = {}): AcquireOptions {
  return { sessionId: "s", holder, ttlMs: LONG_MS, waitMs: 0, ...over };
}

async function aborted({ signal }: HeldLease): Promise<unknown> {
  await expect.poll(() => signal.aborted, { interval: 20 }).toBe(true);
  return signal.reason;
}

/** A request for the lease that shows how many wait for it, and keeps no place in the queue. */
const PROBE = { sessionId: "s", holder: "carol", token: "probe", ttlMs: 1, placeMs: 1 };

/** Resolves when `count` callers wait for the lease. */
async function waiters(store: Store, count: number): Promise<void> {
  await expect
    .poll(() => store.leases.acquire(PROBE), { interval: 20 })
    .toMatchObject({ granted: false, ahead: count });
}

describe("holding a lease", () => {
  it("a held lease is renewed beyond its TTL, and keeps its fence", async () => {
    const { store, leases, clock } = await setUp();
    const lease = await leases.acquire(wants("alice", { ttlMs: 5 * TTL_MS }));
    for (let look = 0; look < 10; look++) {
      await clock.advance(TTL_MS);
      await lease.check();
      expect(await store.leases.read("s")).toMatchObject({ holder: "alice", fence: lease.fence });
    }
    expect(lease.signal.aborted).toBe(false);
    await lease.release();
    expect(await store.leases.read("s")).toBeNull();
    expect(lease.signal.aborted).toBe(false);
    await expect(lease.check()).rejects.toMatchObject(LOST);
    await expect(lease.release()).rejects.toMatchObject(LOST);
  });

  it("the signal of a lease that is taken over aborts with the name and the reason of the new holder", async () => {
    const { leases, clock } = await setUp();
    const lease = await leases.acquire(wants("alice"));
    const stolen = await leases.acquire(wants("bob", { steal: { reason: "alice is on holiday" } }));
    expect(stolen.fence).toBeGreaterThan(lease.fence);
    await clock.advance(TTL_MS, 1);
    const reason = await aborted(lease);
    expect(reason).toMatchObject(LOST);
    expect(reason).toMatchObject({ message: expect.stringMatching(/"bob" took it over \("alice is on holiday"\)/) });
    await expect(lease.check()).rejects.toBe(reason);
    await expect(lease.release()).rejects.toBe(reason);
    await stolen.check();
    await stolen.release();
  });

  it("a lease survives a store that fails to renew it for a while", async () => {
    const { store, clock } = await setUp();
    let failures = 0;
    const trouble = altered(store, {
      leases: {
        renew: async (...args) => {
          if (failures++ < 2) throw new FleetError("FLEET_STATE_UNWRITABLE", "disk full");
          return await store.leases.renew(...args);
        },
      },
    });
    const lease = await new Leases(trouble, clock).acquire(wants("alice", { ttlMs: 3_000 }));
    await clock.advance(4_000);
    expect(failures).toBeGreaterThan(2);
    await lease.check();
    await lease.release();
  });

  it("a lease is lost at the end of its TTL when the store never answers", async () => {
    const { store, clock } = await setUp();
    const silent = altered(store, { leases: { renew: () => new Promise(() => undefined) } });
    const lease = await new Leases(silent, clock).acquire(wants("alice", { ttlMs: TTL_MS }));
    await clock.advance(TTL_MS - 1, 0);
    expect(lease.signal.aborted).toBe(false);
    await clock.advance(1, 0);
    expect(lease.signal).toMatchObject({ aborted: true, reason: LOST });
    await expect(lease.release()).rejects.toMatchObject(LOST);
  });

  it("if the store fails, the check of a held lease rejects with the store's error, and the lease is not lost", async () => {
    const { store, clock } = await setUp();
    let down = false;
    const trouble = altered(store, {
      leases: {
        check: async (...args) => {
          if (down) throw new FleetError("FLEET_STATE_UNWRITABLE", "I/O error");
          return await store.leases.check(...args);
        },
      },
    });
    const lease = await new Leases(trouble, clock).acquire(wants("alice"));
    down = true;
    await expect(lease.check()).rejects.toMatchObject({ code: "FLEET_STATE_UNWRITABLE" });
    down = false;
    await lease.check();
    await lease.release();
  });

  it("the TTL of a lease begins when its request is sent, even if the answer takes long", async () => {
    const { store, clock } = await setUp();
    const slow = altered(store, {
      leases: {
        acquire: async (request) => {
          const answer = await store.leases.acquire(request);
          clock.jump(TTL_MS + 200);
          return answer;
        },
      },
    });
    const lease = await new Leases(slow, clock).acquire(wants("alice", { ttlMs: TTL_MS }));
    await expect(lease.check()).rejects.toMatchObject(LOST);
  });
});

describe("waiting for a lease", () => {
  it("a wait for a lease that times out names the holder and the remaining time, and leaves the queue", async () => {
    const { store, leases } = await setUpInRealTime();
    const lease = await leases.acquire(wants("alice"));
    const begun = performance.now();
    await expect(leases.acquire(wants("bob", { waitMs: 300 }))).rejects.toMatchObject({
      code: "FLEET_SESSION_LOCKED",
      exit: 5,
      message: expect.stringMatching(/^Session "s" is locked by "alice" for another (600|599|59\d) s/),
    });
    expect(performance.now() - begun).toBeGreaterThanOrEqual(299);
    expect(await store.leases.acquire(PROBE)).toMatchObject({ granted: false, ahead: 0 });
    await lease.release();
  });

  it("a wait for a lease that is aborted rejects with the reason, and leaves the queue", async () => {
    const { store, leases } = await setUpInRealTime();
    const lease = await leases.acquire(wants("alice"));
    const giveUp = new AbortController();
    const waiting = leases.acquire(wants("bob", { waitMs: LONG_MS, signal: giveUp.signal }));
    await waiters(store, 1);
    const reason = new Error("enough");
    giveUp.abort(reason);
    await expect(waiting).rejects.toBe(reason);
    expect(await store.leases.acquire(PROBE)).toMatchObject({ granted: false, ahead: 0 });
    await lease.release();
    await expect(leases.acquire(wants("bob", { signal: giveUp.signal }))).rejects.toBe(reason);
    expect(await store.leases.read("s")).toBeNull();
  });

  it("acquire gives back a lease that was granted to a caller who gave up during the request", async () => {
    const { store } = await setUpInRealTime();
    const giveUp = new AbortController();
    const late = altered(store, {
      leases: {
        acquire: async (request) => {
          const answer = await store.leases.acquire(request);
          giveUp.abort(new Error("enough"));
          return answer;
        },
      },
    });
    await expect(new Leases(late).acquire(wants("bob", { signal: giveUp.signal }))).rejects.toThrow("enough");
    expect(await store.leases.read("s")).toBeNull();
  });

  it("a caller who may no longer use a session stops waiting for the session's lease, and never gets the lease", async () => {
    const { store, leases } = await setUpInRealTime();
    const lease = await leases.acquire(wants("alice"));
    const refusal = new Error("no longer a member");
    let asked = 0;
    const mayUse = async () => {
      if (asked++ > 0) throw refusal;
    };
    const waiting = leases.acquire(wants("bob", { waitMs: LONG_MS, mayUse }));
    await waiters(store, 1);
    await Promise.all([lease.release(), expect(waiting).rejects.toBe(refusal)]);
    expect(await store.leases.read("s")).toBeNull();
  });

  it.each([0, -1, 999, 25 * 86_400_000, Number.NaN, Number.POSITIVE_INFINITY])(
    "acquire refuses a TTL of %d ms",
    async (ttlMs) => {
      const { store, leases } = await setUpInRealTime();
      await expect(leases.acquire(wants("alice", { ttlMs }))).rejects.toMatchObject({
        code: "FLEET_USAGE_INVALID",
        exit: 2,
        message: expect.stringContaining("from 1s to 24d"),
      });
      expect(await store.leases.read("s")).toBeNull();
    },
  );
});

describe("a lease that was taken elsewhere", () => {
  it("an adopted lease is renewed while it is held, and stays in force when its adopter releases it", async () => {
    const { store, leases, clock } = await setUp();
    const outer = await leases.acquire(wants("alice", { ttlMs: 5 * TTL_MS }));
    await outer.detach();
    const inner = await leases.adopt("s", outer.token, "alice");
    await clock.advance(6 * TTL_MS);
    await inner.check();
    expect(inner.fence).toBe(outer.fence);
    await inner.release();
    expect(await store.leases.check("s", outer.token)).toMatchObject({ fence: outer.fence });
  });

  it("enter() continues under the lease in the environment variables, but only in that lease's session", async () => {
    const { store, leases } = await setUp();
    const outer = await leases.acquire(wants("alice"));
    const env = { [LEASE_VARIABLES.session]: "s", [LEASE_VARIABLES.token]: outer.token };
    const inner = await leases.enter(wants("alice"), env);
    expect(inner.fence).toBe(outer.fence);
    await inner.release();
    await outer.check();
    const other = await leases.enter(wants("alice", { sessionId: "other" }), env);
    expect(await store.leases.read("other")).toMatchObject({ fence: other.fence });
    await other.release();
    await expect(leases.enter(wants("alice"), {})).rejects.toMatchObject({ code: "FLEET_SESSION_LOCKED" });
    await outer.release();
    // `env` names a lease that has ended. `enter` fails, and does not take a new lease instead.
    await expect(leases.enter(wants("alice"), env)).rejects.toMatchObject(LOST);
  });
});
