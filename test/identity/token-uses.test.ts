import { expect, it } from "vitest";
import { TokenUses } from "../../src/identity/tokens.js";

function uses() {
  const written: string[] = [];
  let nowMs = 0;
  const used = async (id: string, at: string) => {
    written.push(`${id} ${at}`);
    if (id === "bad") throw new Error("the store is away");
  };
  const store = { tokens: { used }, now: async () => nowMs };
  const clock = { now: () => nowMs };
  const later = (ms: number) => {
    nowMs += ms;
  };
  return { written, uses: new TokenUses(store, clock), later };
}

it("a token's uses are written at most once a minute, with the time by the store's clock", async () => {
  const { written, uses: tokens, later } = uses();
  for (let second = 0; second < 120; second++) {
    tokens.note("a");
    if (second === 30) tokens.note("b");
    await Promise.resolve();
    later(1_000);
  }
  await expect
    .poll(() => written)
    .toEqual(["a 1970-01-01T00:00:00.000Z", "b 1970-01-01T00:00:30.000Z", "a 1970-01-01T00:01:00.000Z"]);
});

it("with an interval of an hour, a use is written at most once an hour, even if the write fails", async () => {
  const { written, uses: tokens, later } = uses();
  tokens.note("bad", 3_600_000);
  later(3_599_000);
  tokens.note("bad", 3_600_000);
  later(1_000);
  tokens.note("bad", 3_600_000);
  await expect.poll(() => written.length).toBe(2);
});
