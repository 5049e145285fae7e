import { describe, expect, it } from "vitest";
import { hashToken } from "../../src/base/token.js";
import {
  acquire,
  emptyState,
  held,
  type Instant,
  inForce,
  type LeaseState,
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
