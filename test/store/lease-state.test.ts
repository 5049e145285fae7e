import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { hashToken } from "../../src/base/token.js";
import {
  acquire,
  emptyState,
  held,
  type Instant,
  inForce,
  type LeaseState,
  leave,
  release,
  renew,
} from "../../src/store/file/records/lease-records.js";

const BORN = 1_700_000_000_000;
const TTL_MS = 10_000;
const PLACE_MS = 3_000;

function at(monotonicMs: number, over: Partial<Instant> = {}): Instant {
  return { bootId: "boot 1", monotonicMs, wallMs: BORN + monotonicMs, ...over };
}

function asks(state: LeaseState, token: string, now: Instant, stealReason: string | null = null) {
  const tokenHash = hashToken(token);
  return acquire(state, { holder: token, tokenHash, ttlMs: TTL_MS, placeMs: PLACE_MS, stealReason }, now);
}

describe("the lease state", () => {
  it("a lease ends at its TTL, to the millisecond", () => {
    const state = emptyState("s", BORN);
    asks(state, "a", at(0));
    expect(inForce(state, at(TTL_MS - 1))).toMatchObject({ holder: "a" });
    expect(inForce(state, at(TTL_MS))).toBeNull();
  });

  it.each([
    ["back one year", -365 * 86_400_000],
    ["ahead one year", 365 * 86_400_000],
  ])("a lease ends after its TTL even if the wall clock is set %s", (_, jumpMs) => {
    const state = emptyState("s", BORN);
    const first = asks(state, "a", at(0));
    const jumped = (ms: number) => at(ms, { wallMs: BORN + ms + jumpMs });
    expect(inForce(state, jumped(TTL_MS - 1))).not.toBeNull();
    expect(asks(state, "b", jumped(TTL_MS - 1))).toMatchObject({ granted: null });
    const second = asks(state, "b", jumped(TTL_MS));
    expect(second.granted?.fence).toBeGreaterThan(first.granted?.fence ?? Number.POSITIVE_INFINITY);
  });

  it("a lease ends and loses its waiters when the machine restarts, whatever the monotonic clock shows", () => {
    for (const ms of [0, 5, TTL_MS * 9]) {
      const state = emptyState("s", BORN);
      asks(state, "a", at(5));
      asks(state, "b", at(6));
      const now = at(ms, { bootId: "boot 2" });
      expect(inForce(state, now)).toBeNull();
      expect(() => held(state, hashToken("a"), now)).toThrow(/does not hold the lease/);
      // The waiters have lost their places, too.
      expect(asks(state, "c", now).granted).toMatchObject({ holder: "c" });
    }
  });
});

describe("the lease state, with its queue,", () => {
  it("a waiter's place in the lease queue is renewed only after a third of the place's time (placeMs)", () => {
    const state = emptyState("s", BORN);
    asks(state, "a", at(0));
    asks(state, "b", at(0));
    let changes = 0;
    for (let ms = 0; ms < 9_000; ms += 50) {
      const before = JSON.stringify(state);
      expect(asks(state, "b", at(ms))).toMatchObject({ granted: null, ahead: 0 });
      if (JSON.stringify(state) !== before) changes++;
    }
    expect(changes).toBeLessThanOrEqual(9);
    expect(changes).toBeGreaterThanOrEqual(6);
  });

  it("a waiter leaves the lease queue when it gets the lease", () => {
    const state = emptyState("s", BORN);
    asks(state, "a", at(0));
    asks(state, "b", at(0));
    release(state, hashToken("a"), at(1));
    expect(asks(state, "b", at(2)).granted).toMatchObject({ holder: "b" });
    expect(state.queue).toEqual([]);
  });

  it("a waiter leaves the lease queue when it steals the lease", () => {
    const state = emptyState("s", BORN);
    asks(state, "a", at(0));
    asks(state, "b", at(0));
    asks(state, "b", at(1), "now");
    expect(state).toMatchObject({ queue: [], lease: { holder: "b", stealReason: "now" } });
  });
});

type Step =
  | { does: "ask" | "leave" | "renew" | "release" | "steal"; who: number }
  | { does: "wait"; ms: number }
  | { does: "set the clock"; ms: number };

const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 6, arbitrary: fc.record({ does: fc.constant("ask" as const), who: fc.nat(4) }) },
  {
    weight: 4,
    arbitrary: fc.record({
      does: fc.constantFrom("leave" as const, "renew" as const, "release" as const, "steal" as const),
      who: fc.nat(4),
    }),
  },
  { weight: 3, arbitrary: fc.record({ does: fc.constant("wait" as const), ms: fc.nat(2 * TTL_MS) }) },
  {
    weight: 1,
    arbitrary: fc.record({ does: fc.constant("set the clock" as const), ms: fc.integer({ min: -1e9, max: 1e9 }) }),
  },
);

/** The rules of the lease state in their simplest form: who holds the lease until when, and who waits until when. */
class Model {
  holder: { who: number; end: number } | null = null;
  queue: { who: number; end: number }[] = [];

  settle(now: number): void {
    if (this.holder !== null && this.holder.end <= now) this.holder = null;
  }
}

it("the lease state keeps one holder per lease, serves waiters in order and raises fences for any sequence of requests", () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 80 }), (steps) => {
      const state = emptyState("s", BORN);
      const model = new Model();
      let ms = 0;
      let shift = 0;
      let fence = 0;
      for (const action of steps) {
        if (action.does === "wait") ms += action.ms;
        if (action.does === "set the clock") shift = action.ms;
        if (!("who" in action)) continue;
        const now = at(ms, { wallMs: BORN + ms + shift });
        const { who } = action;
        const tokenHash = hashToken(String(who));
        model.settle(ms);
        const mine = model.holder?.who === who;
        if (action.does === "ask" || action.does === "steal") {
          const stealing = action.does === "steal";
          if (!mine && !stealing) model.queue = model.queue.filter(({ end }) => end > ms);
          const place = model.queue.findIndex((one) => one.who === who);
          const first = model.holder === null && (place === 0 || model.queue.length === 0);
          const answer = asks(state, String(who), now, stealing ? "why" : null);
          expect(answer.granted !== null).toBe(mine || stealing || first);
          if (answer.granted === null) {
            const end = ms + PLACE_MS;
            const kept = model.queue[place];
            if (kept === undefined) model.queue.push({ who, end });
            else if (kept.end - ms < (PLACE_MS * 2) / 3) kept.end = end;
            expect(answer.ahead).toBe(model.queue.findIndex((one) => one.who === who));
          } else if (mine) {
            expect(answer.granted.fence).toBe(fence);
          } else {
            expect(answer.granted.fence).toBeGreaterThan(fence);
            fence = answer.granted.fence;
            model.holder = { who, end: ms + TTL_MS };
            model.queue = model.queue.filter((one) => one.who !== who);
          }
        } else if (action.does === "leave") {
          leave(state, tokenHash);
          model.queue = model.queue.filter((one) => one.who !== who);
        } else {
          const act = () =>
            action.does === "renew" ? renew(state, tokenHash, TTL_MS, now) : release(state, tokenHash, now);
          if (!mine) expect(act).toThrow(/does not hold the lease/);
          else act();
          if (mine) model.holder = action.does === "renew" ? { who, end: ms + TTL_MS } : null;
        }
        expect(inForce(state, now)?.holder ?? null).toBe(model.holder === null ? null : String(model.holder.who));
      }
    }),
    { numRuns: 500 },
  );
});
