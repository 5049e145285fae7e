import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { backoffMs } from "../../src/serve/backoff.js";

const LONGEST_MS = 60_000;
const crashes = fc.integer({ min: 2, max: 10_000 });
const base = fc.integer({ min: 1, max: 3_600_000 });
const random = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });

describe("backoffMs", () => {
  it("starts a server at once that ended for the first time, or did not", () => {
    fc.assert(fc.property(fc.integer({ max: 1 }), base, (count, baseMs) => backoffMs(count, baseMs) === 0));
  });

  it("waits between a half and the whole of the base, doubled each time, and never for longer than a minute", () => {
    fc.assert(
      fc.property(crashes, base, random, (count, baseMs, share) => {
        const waitMs = backoffMs(count, baseMs, () => share);
        const whole = Math.min(LONGEST_MS, baseMs * 2 ** (count - 2));
        expect(waitMs).toBeGreaterThanOrEqual(whole / 2);
        expect(waitMs).toBeLessThan(whole * (1 + Number.EPSILON));
      }),
    );
  });

  it("never waits for less after one more end, with the same luck", () => {
    fc.assert(
      fc.property(crashes, base, random, (count, baseMs, share) => {
        const luck = () => share;
        expect(backoffMs(count + 1, baseMs, luck)).toBeGreaterThanOrEqual(backoffMs(count, baseMs, luck));
      }),
    );
  });

  it("spreads servers that ended together", () => {
    const waits = new Set(Array.from({ length: 100 }, () => backoffMs(5, 1_000)));
    expect(waits.size).toBeGreaterThan(90);
  });
});
