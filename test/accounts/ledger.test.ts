import { expect, it, onTestFinished, vi } from "vitest";
import { Ledger } from "../../src/accounts/ledger.js";
import { FleetError } from "../../src/base/errors.js";
import type { LedgerLine } from "../../src/base/usage.js";
import type { UsageTable } from "../../src/store/usage.js";

const ANN = { user: "ann", sessionId: "s1", model: "gpt-5", tokenId: "k1" };
const NUMBERS = { inputTokens: 1, outputTokens: 2, cacheReadTokens: 0, credits: null };

function ledgerOn(append: (lines: readonly LedgerLine[]) => number) {
  const warnings: string[] = [];
  const usage = { append } as UsageTable;
  return { ledger: new Ledger({ usage, host: "a", warn: (message) => warnings.push(message) }), warnings, usage };
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

it("the ledger appends the lines of a turn together, and the line of a model request before the request leaves", () => {
  vi.useFakeTimers();
  onTestFinished(() => void vi.useRealTimers());
  const writes: string[][] = [];
  const { ledger, usage } = ledgerOn((lines) => {
    writes.push(lines.map(({ kind, outcome }) => `${kind} ${outcome}`));
    return lines.length;
  });
  const turn = ledger.begin("turn", ANN);
  ledger.completed(ANN, NUMBERS);
  expect(writes).toEqual([]);
  turn.end("completed");
  expect(writes).toEqual([["turn begun", "request begun", "request completed", "turn completed"]]);
  ledger.begin("turn", ANN);
  const request = ledger.begin("request", ANN);
  expect(writes[1]).toEqual(["turn begun", "request begun"]);
  request.end("completed");
  vi.advanceTimersByTime(20);
  expect(writes[2]).toEqual(["request completed"]);
  ledger.completed(ANN, NUMBERS);
  usage.appendWaiting();
  expect(writes[3]).toEqual(["request begun", "request completed"]);
  vi.advanceTimersByTime(1_000);
  expect(writes).toHaveLength(4);
});

it("the ledger keeps lines that it cannot write to a full disk, and writes each once when there is space", () => {
  const lines: LedgerLine[] = [];
  let room = 0;
  const { ledger, warnings, usage } = ledgerOn((more) => {
    if (room === 0) throw new FleetError("FLEET_STATE_UNWRITABLE", "no space left on device.");
    const taken = more.slice(0, room);
    lines.push(...taken);
    return taken.length;
  });
  const first = ledger.begin("request", ANN);
  first.end("completed", NUMBERS);
  expect(warnings[0]).toBe("What turns consume cannot be recorded: no space left on device.");
  room = 2;
  const second = ledger.begin("request", ANN);
  room = 9;
  second.end("failed");
  usage.appendWaiting();
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
  ledger.begin("turn", { ...ANN, model: "x".repeat(1_000_000) }).end("completed");
  ledger.begin("turn", { ...ANN, model: null }).end("completed");
  expect(lines.map(({ model }) => model?.length)).toEqual([200, 200, undefined, undefined]);
});
