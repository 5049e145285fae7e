import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { backoffMs } from "../../src/serve/health/monitor.js";

const LONGEST_MS = 60_000;
const crashes = fc.integer({ min: 2, max: 10_000 });
const base = fc.integer({ min: 1, max: 3_600_000 });
const random = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });

describe("backoffMs", () => {
  it("the backoff is zero for a server that has ended at most once", () => {
    fc.assert(fc.property(fc.integer({ max: 1 }), base, (count, baseMs) => backoffMs(count, baseMs) === 0));
  });

  it("the backoff is between half and all of the base, which doubles with each crash up to a minute", () => {
    fc.assert(
      fc.property(crashes, base, random, (count, baseMs, share) => {
        const waitMs = backoffMs(count, baseMs, () => share);
        const whole = Math.min(LONGEST_MS, baseMs * 2 ** (count - 2));
        expect(waitMs).toBeGreaterThanOrEqual(whole / 2);
        expect(waitMs).toBeLessThan(whole * (1 + Number.EPSILON));
      }),
    );
  });

  it("the backoff never gets shorter after one more crash with the same random number", () => {
    fc.assert(
      fc.property(crashes, base, random, (count, baseMs, share) => {
        const luck = () => share;
        expect(backoffMs(count + 1, baseMs, luck)).toBeGreaterThanOrEqual(backoffMs(count, baseMs, luck));
      }),
    );
  });

  it("the backoff spreads the starts of servers that ended together", () => {
    const waits = new Set(Array.from({ length: 100 }, () => backoffMs(5, 1_000)));
    expect(waits.size).toBeGreaterThan(90);
  });
});
