import { expect, it } from "vitest";
import type { Config } from "../../src/config/schema.js";
import { LoopTimer } from "../../src/serve/failures.js";
import { Restarts } from "../../src/serve/health/monitor.js";
import { TestClock } from "../fixtures/fleets/test-clock.js";
import { serverRecord } from "../fixtures/store/store-records.js";

const config = { health: { restarts: 5, intervalMs: 5_000 } } as Config;
const failed = (crashes: number) => serverRecord("s1", { state: "failed", crashes });

function make() {
  const clock = new TestClock();
  const timer = new LoopTimer(clock);
  return { clock, timer, restarts: new Restarts({ clock, config }, timer) };
}

it("serve starts a server at once after its first crash, and only after the backoff when it crashes again", () => {
  const { clock, restarts } = make();
  expect(restarts.isDue(failed(1))).toBe(true);
  restarts.begin("s1");
  expect(restarts.isDue(failed(3))).toBe(false);
  // The backoff of a third crash is between half and all of two seconds.
  clock.jump(999);
  expect(restarts.isDue(failed(3))).toBe(false);
  clock.jump(1_001);
  expect(restarts.isDue(failed(3))).toBe(true);
});

it("the supervisor's loop wakes when the backoff of a server is over", async () => {
  const { clock, timer, restarts } = make();
  let isNext = false;
  const next = timer.next(3_600_000).then(() => {
    isNext = true;
  });
  restarts.isDue(failed(2));
  await clock.advance(499);
  expect(isNext).toBe(false);
  await clock.advance(501);
  await next;
  expect(restarts.isDue(failed(2))).toBe(true);
});
