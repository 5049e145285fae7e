import { expect, it, vi } from "vitest";
import { Turn } from "../../src/door/state/turn.js";
import { sessionRecord } from "../fixtures/store/store-records.js";

it("a turn stays active when the client sends a prompt while the front door asks the server whether the session is idle", async () => {
  const turn = new Turn(sessionRecord("s"));
  turn.start();
  turn.sends();
  turn.answered(true);
  const questions: ((isIdle: boolean) => void)[] = [];
  const ended = turn.ended(
    () => new Promise((reply) => questions.push(reply)),
    () => false,
    () => 0,
  );
  // This idle event may end an earlier turn, because the prompt has not begun. So the front door asks the server.
  turn.idle(false);
  await expect.poll(() => questions.length).toBe(1);
  turn.sends();
  questions[0]?.(true);
  await new Promise((resolve) => setImmediate(resolve));
  expect(turn.active).toBe(true);
  turn.answered(true);
  turn.idle(true);
  expect(await ended).toBe(false);
  expect(turn.over).toBe("idle");
});

it("a turn stays active while its server is idle and has not begun the prompt, until the time limit for the prompt's start", async () => {
  vi.useFakeTimers();
  try {
    const turn = new Turn(sessionRecord("s"));
    turn.start();
    turn.sends();
    let asked = 0;
    let hasBegun = false;
    const isIdle = async () => {
      asked++;
      return true;
    };
    const ended = turn.ended(
      isIdle,
      () => false,
      () => (hasBegun ? 0 : 10_000),
    );
    // The end of another client's turn arrives first, and then the answer to this prompt.
    turn.idle(true);
    turn.answered(true);
    await vi.advanceTimersByTimeAsync(9_000);
    expect(asked).toBeGreaterThan(2);
    expect(turn.active).toBe(true);
    hasBegun = true;
    turn.idle(true);
    expect(await ended).toBe(false);
    expect(turn.over).toBe("idle");

    const dropped = new Turn(sessionRecord("s"));
    dropped.start();
    dropped.sends();
    dropped.answered(true);
    const found = dropped.ended(
      isIdle,
      () => false,
      () => 10_000,
    );
    dropped.idle(false);
    await vi.advanceTimersByTimeAsync(12_000);
    expect(await found).toBe(true);
  } finally {
    vi.useRealTimers();
  }
});
