import { expect, it } from "vitest";
import { Turn } from "../../src/gateway/turn.js";

it("keeps a turn active when a prompt is sent while the server is asked whether the session is idle", async () => {
  const turn = new Turn();
  turn.start(undefined);
  turn.sent();
  turn.answered(true);
  const questions: ((isIdle: boolean) => void)[] = [];
  const ended = turn.ended(
    () => new Promise((reply) => questions.push(reply)),
    () => false,
  );
  // This idle event may end an earlier turn, because the prompt has not begun. So the server is asked.
  turn.idle(false);
  await expect.poll(() => questions.length).toBe(1);
  turn.sent();
  questions[0]?.(true);
  await new Promise((resolve) => setImmediate(resolve));
  expect(turn.active).toBe(true);
  turn.answered(true);
  turn.idle(true);
  expect(await ended).toBe(false);
  expect(turn.over).toBe("idle");
});
