import { expect, it } from "vitest";
import type { Config } from "../../src/config/schema.js";
import type { ServeContext } from "../../src/serve/context.js";
import { LoopTimer } from "../../src/serve/context.js";
import { Restarts } from "../../src/serve/health.js";
import { PERIODIC, repeat } from "../../src/serve/upkeep.js";
import type { GcResult } from "../../src/sessions/gc/collect.js";
import { TestClock } from "../fixtures/fleets/test-clock.js";
import { serverRecord } from "../fixtures/store/store-records.js";

const MINUTE_MS = 60_000;
const NOTHING: GcResult = {
  dryRun: false,
  deleted: [],
  skipped: [],
  servers: [],
  remains: [],
  unreadable: [],
  freedBytes: 0,
};

/** Starts the scheduled gc. `ranAt` has the time of each of its runs, in minutes. */
function schedule(gc: () => Promise<GcResult>, warnings: string[] = []) {
  const clock = new TestClock();
  const ranAt: number[] = [];
  const failures: string[] = [];
  const stop = new AbortController();
  const context = {
    clock,
    config: { session: { ttlMs: MINUTE_MS } },
    host: {
      gc: async () => {
        ranAt.push(clock.now() / MINUTE_MS);
        return await gc();
      },
    },
    metrics: {
      gcRan: () => undefined,
      series: { gcRuns: { inc: () => void failures.push("counted") } },
      failed: () => undefined,
    },
    takeWarnings: () => warnings.splice(0),
    log: (level: string, message: string) => void (level === "debug" || failures.push(message)),
  } as unknown as ServeContext;
  return { clock, ranAt, failures, stop, ended: repeat(PERIODIC.gc, context, stop.signal) };
}

it("serve runs the first gc after a minute and later ones every hour, until serve ends", async () => {
  const { clock, ranAt, stop, ended } = schedule(async () => NOTHING);
  await clock.advance(181 * MINUTE_MS);
  expect(ranAt).toEqual([1, 61, 121, 181]);
  stop.abort();
  await ended;
  await clock.advance(120 * MINUTE_MS);
  expect(ranAt).toHaveLength(4);
});

it("serve reports a gc that fails, and runs the next one on time", async () => {
  const { clock, ranAt, failures, stop, ended } = schedule(async () => {
    throw new Error("the disk is full");
  });
  await clock.advance(61 * MINUTE_MS);
  expect(ranAt).toEqual([1, 61]);
  expect(failures.filter((one) => one === "counted")).toHaveLength(2);
  expect(failures).toContainEqual(expect.stringContaining("gc failed"));
  stop.abort();
  await ended;
});

const config = { health: { intervalMs: 5_000 } } as Config;
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
