import { expect, it } from "vitest";
import { reportOf } from "../../src/accounts/ledger.js";
import { NO_USAGE, type UsagePart } from "../../src/base/usage.js";

const PRICES = { "gpt-5": { input: 1, cached: 0.1, output: 10 }, free: { input: 0, cached: 0, output: 0 } };

function part(changes: Partial<UsagePart>): UsagePart {
  const tokens = { inputTokens: 1_000, outputTokens: 100, cacheReadTokens: 400 };
  return { ...NO_USAGE, requests: 1, ...tokens, key: "ann", user: "ann", model: "gpt-5", ...changes };
}

it("a usage report adds up the parts of each key, and lists the key with the most tokens first", () => {
  const parts = [part({ key: "small", inputTokens: 1 }), part({ key: "large" }), part({ key: "small", turns: 2 })];
  const { usage, total } = reportOf(
    [...parts, part({ key: null, inputTokens: null, outputTokens: null })],
    "user",
    null,
  );
  expect(usage.map(({ key, turns, requests, inputTokens }) => [key, turns, requests, inputTokens])).toEqual([
    ["small", 2, 2, 1_001],
    ["large", 0, 1, 1_000],
    [null, 0, 1, null],
  ]);
  expect(total).toEqual({
    ...{ turns: 2, requests: 4, inputTokens: 2_001, outputTokens: 300, cacheReadTokens: 1_600 },
    ...{ credits: null, cost: null },
  });
});

it("a usage report lists days in chronological order", () => {
  const days = ["2026-11-30", "2026-11-29"].map((key, index) => part({ key, inputTokens: 10 * (index + 1) }));
  expect(reportOf(days, "day", null).usage.map(({ key }) => key)).toEqual(["2026-11-29", "2026-11-30"]);
});

it("a usage report computes costs from each model's prices, with a separate price for cached tokens", () => {
  const { usage, total } = reportOf([part({}), part({ model: "free" })], "user", PRICES);
  expect(usage[0]?.cost).toBe((600 * 1 + 400 * 0.1 + 100 * 10) / 1e6);
  expect(total.cost).toBe(usage[0]?.cost);
});

it.each<[string, Partial<UsagePart>]>([
  ["a model has no price", { model: "other" }],
  ["the model is not known", { model: null }],
  ["the tokens of a request are not known", { inputTokens: null, outputTokens: null }],
])("a usage report has no cost for a key if %s, even if other costs are known", (_, changes) => {
  const { usage, total } = reportOf([part({}), part(changes), part({ key: "bob" })], "user", PRICES);
  expect(usage.map(({ key, cost }) => [key, cost === null])).toEqual([
    ["ann", true],
    ["bob", false],
  ]);
  expect(total.cost).toBeNull();
});

it("a turn without requests costs nothing, and does not make the cost of other requests unknown", () => {
  const turn = part({ requests: 0, turns: 1, inputTokens: null, outputTokens: null, cacheReadTokens: null });
  expect(reportOf([turn, part({})], "user", PRICES).total.cost).toBeGreaterThan(0);
  expect(reportOf([turn], "user", PRICES).total.cost).toBeNull();
});
