import { describe, expect, it } from "vitest";
import { PassingTokens } from "../../src/identity/tokens.js";

const NOW = Date.parse("2026-01-01T00:00:00.000Z");

function token(id: string, ageMs: number) {
  return { id, createdAt: new Date(NOW - ageMs).toISOString() };
}

describe("a token for one connection", () => {
  it("a token for one connection is admitted once, within a minute", () => {
    const tokens = new PassingTokens(() => 3_600_000);
    expect(tokens.admit(token("a", 60_000), NOW)).toBe(true);
    expect(tokens.admit(token("a", 60_000), NOW)).toBe(false);
    expect(tokens.admit(token("b", 60_001), NOW)).toBe(false);
    expect(tokens.admit(token("a", 60_001), NOW + 1)).toBe(false);
    expect(tokens.admit({ id: "c", createdAt: "never" }, NOW)).toBe(false);
    expect(tokens.admit(token("d", 0), NOW)).toBe(true);
  });

  it("a token for one connection is refused if it was made before the process started", () => {
    const tokens = new PassingTokens(() => 500);
    expect(tokens.admit(token("a", 501), NOW)).toBe(false);
    expect(tokens.admit(token("a", 499), NOW)).toBe(true);
  });
});
