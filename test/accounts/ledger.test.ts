import { expect, it } from "vitest";
import { Ledger } from "../../src/accounts/ledger.js";
import { FleetError } from "../../src/base/errors.js";
import type { LedgerLine } from "../../src/base/usage.js";
import type { UsageTable } from "../../src/store/usage.js";

const ANN = { user: "ann", sessionId: "s1", model: "gpt-5", tokenId: "k1" };

function ledgerOn(append: (lines: readonly LedgerLine[]) => number) {
  const warnings: string[] = [];
  const usage = { append } as UsageTable;
  return { ledger: new Ledger({ usage, host: "a", warn: (message) => warnings.push(message) }), warnings };
}

it("the ledger writes a line when a turn begins and another when it ends, both with its id and start time", () => {
  const lines: LedgerLine[] = [];
  const { ledger } = ledgerOn((more) => lines.push(...more) && more.length);
  const entry = ledger.begin("turn", ANN, "turn-1");
  entry.end("cut");
  entry.end("completed");
  expect(lines.map(({ id, kind, host, outcome }) => [id, kind, host, outcome])).toEqual([
    ["turn-1", "turn", "a", "begun"],
    ["turn-1", "turn", "a", "cut"],
  ]);
  expect(lines[1]?.at).toBe(lines[0]?.at);
  expect(lines[1]?.ms).toEqual(expect.any(Number));
});

it("the ledger keeps lines that it cannot write to a full disk, and writes each once when there is space", () => {
  const lines: LedgerLine[] = [];
  let room = 0;
  const { ledger, warnings } = ledgerOn((more) => {
    if (room === 0) throw new FleetError("FLEET_STATE_UNWRITABLE", "no space left on device.");
    const taken = more.slice(0, room);
    lines.push(...taken);
    return taken.length;
  });
  const first = ledger.begin("request", ANN);
  first.end("completed", { inputTokens: 1, outputTokens: 2, cacheReadTokens: 0, credits: null });
  expect(warnings[0]).toBe("What turns consume cannot be recorded: no space left on device.");
  room = 2;
  const second = ledger.begin("request", ANN);
  room = 9;
  second.end("failed");
  expect(lines.map(({ id, outcome }) => [id === first.id, outcome])).toEqual([
    [true, "begun"],
    [true, "completed"],
    [false, "begun"],
    [false, "failed"],
  ]);
});

it("the ledger cuts a model's name after 200 characters", () => {
  const lines: LedgerLine[] = [];
  const { ledger } = ledgerOn((more) => lines.push(...more) && more.length);
  ledger.begin("request", { ...ANN, model: "x".repeat(1_000_000) }).end("completed");
  ledger.begin("request", { ...ANN, model: null }).end("completed");
  expect(lines.map(({ model }) => model?.length)).toEqual([200, 200, undefined, undefined]);
});
