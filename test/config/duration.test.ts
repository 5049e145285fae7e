import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { quote } from "../../src/base/errors.js";
import { LONGEST_MS, LONGEST_TIMER_MS, parseDuration, writeDuration } from "../../src/base/values/measures.js";
import { refusalOf } from "./folder.js";

const UNITS = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000, w: 604_800_000 } as const;

describe("parseDuration", () => {
  it.each([
    ["24h", 86_400_000],
    ["1h30m", 5_400_000],
    ["1.5h", 5_400_000],
    ["300s", 300_000],
    ["20ms", 20],
    ["1m1ms", 60_001],
    ["2w", 1_209_600_000],
    ["3650d", LONGEST_MS],
    ["1.1h", 3_960_000],
  ])("parseDuration accepts the duration %s", (text, ms) => {
    expect(parseDuration(text, { name: "--ttl" })).toBe(ms);
  });

  it.each([
    "",
    "0",
    "0s",
    "0h0m",
    "10",
    "-5m",
    "+5m",
    "5 parsecs",
    "5parsecs",
    "NaN",
    "Infinity",
    "1e4s",
    " 5m",
    "5m ",
    "5 m",
    "5m\n",
    "1,5h",
    "1_000s",
    ".5h",
    "5.h",
    "1h30",
    "5H",
    "5min",
    "0.4ms",
    "3651d",
    `${"9".repeat(400)}s`,
    "٥m",
    "5m\u202e",
  ])("parseDuration refuses the text %j", (text) => {
    const error = refusalOf(() => parseDuration(text, { name: "--ttl" }));
    expect(error).toMatchObject({ code: "FLEET_USAGE_INVALID", exit: 2 });
    const allowed = 'a number with a unit (ms, s, m, h, d, w), such as "30s" or "1h30m", above 0 and at most 3650d';
    expect(error.message.startsWith(`--ttl is ${quote(text)}, `)).toBe(true);
    expect(error.message).toMatch(/, which (?:is |has no unit)/);
    expect(error.message.endsWith(`. Allowed: ${allowed}`)).toBe(true);
    expect(error.suggestions).not.toEqual([]);
  });

  it("parseDuration refuses a duration above the given maximum, such as the longest that a timer can wait", () => {
    const error = refusalOf(() => parseDuration("25d", { name: "health.interval", maxMs: LONGEST_TIMER_MS }));
    expect(error.message).toContain("at most 24d");
    expect(LONGEST_TIMER_MS).toBeLessThan(2 ** 31);
  });

  it("parseDuration reads any sequence of amounts with units as their sum", () => {
    const part = fc.tuple(
      fc.integer({ min: 0, max: 400 }),
      fc.constantFrom(...(Object.keys(UNITS) as (keyof typeof UNITS)[])),
    );
    fc.assert(
      fc.property(fc.array(part, { minLength: 1, maxLength: 6 }), (parts) => {
        const ms = parts.reduce((sum, [amount, unit]) => sum + amount * UNITS[unit], 0);
        fc.pre(ms > 0 && ms <= LONGEST_MS);
        const text = parts.map(([amount, unit]) => `${amount}${unit}`).join("");
        expect(parseDuration(text, { name: "--ttl" })).toBe(ms);
      }),
    );
  });

  it.each([
    ["5", "which has no unit"],
    ["0", "which has no unit"],
    ["", "which is not a number with a unit"],
    ["-1s", "which is not a number with a unit"],
    ["soon", "which is not a number with a unit"],
    ["1y", "which is not a number with a unit"],
    ["5 parsecs", "which is not a number with a unit"],
    ["3651d", "which is longer than 3650d"],
    ["0s", "which is too short"],
  ])(
    "the error for the duration %j describes the fault with “%s”, and gives an example that is allowed",
    (text, problem) => {
      const error = refusalOf(() => parseDuration(text, { name: "--ttl" }));
      expect(error.message).toContain(`${quote(text)}, ${problem}. Allowed: `);
      expect(error.suggestions).toEqual(["Write a number with a unit, such as 24h."]);
    },
  );

  it("parseDuration reads what writeDuration writes, to the millisecond", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: LONGEST_MS }), (ms) => {
        expect(parseDuration(writeDuration(ms), { name: "--ttl" })).toBe(ms);
      }),
    );
    expect([0, 1500, 90_000, 86_400_000].map(writeDuration)).toEqual(["0s", "1s500ms", "1m30s", "1d"]);
  });

  it("parseDuration returns whole milliseconds within the limits for any text, or refuses the text", () => {
    const text = fc.oneof(fc.string({ unit: "binary" }), fc.string({ unit: fc.constantFrom(..."0159.-+e mshdw ") }));
    fc.assert(
      fc.property(text, (given) => {
        try {
          const ms = parseDuration(given, { name: "--ttl" });
          expect(Number.isInteger(ms) && ms >= 1 && ms <= LONGEST_MS).toBe(true);
          expect(given).toMatch(/^[\d.mshdw]+$/);
        } catch (error) {
          expect(error).toMatchObject({ code: "FLEET_USAGE_INVALID" });
        }
      }),
    );
  });
});
