import { type ChildProcess, spawn } from "node:child_process";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { expect, it, onTestFinished } from "vitest";
import { openStore } from "../../src/store/store.js";
import { bundleFixture } from "../fixtures/bundle.js";
import { seededRandom } from "../fixtures/random.js";
import { Stopwatch } from "../fixtures/stopwatch.js";
import { machineMs } from "../fixtures/store/lease-clock.js";
import { LeaseLog, overlaps } from "../fixtures/store/lease-log.js";
import { sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const WAITERS = 16;
const ROUNDS = process.env.SOAK === undefined ? 2 : 200;
/** The TTL is so long that a holder keeps its lease even if a busy machine stalls the holder for a moment. */
const TTL_MS = 4_000;

const program = bundleFixture("lease-waiter");

it(`exactly one of ${WAITERS} waiters gets the lease within two TTLs of the holder's death (${ROUNDS} kills)`, async () => {
  const random = seededRandom("lease herd");
  const root = await temporaryRoot();
  await openStore("file", root).sessions.create(sessionRecord("shared"));
  const log = new LeaseLog(join(root, "..", "log"));
  onTestFinished(() => log.close());

  const waiters = new Map<number, ChildProcess>();
  let failures = "";
  onTestFinished(() => {
    for (const child of waiters.values()) child.kill("SIGKILL");
  });
  function start(): void {
    const child = spawn(process.execPath, [program, root, log.path, String(TTL_MS), "hold"], {
      stdio: ["ignore", "ignore", "pipe"],
    });
    child.stderr.on("data", (chunk) => {
      failures += chunk;
    });
    waiters.set(child.pid ?? -1, child);
  }

  for (let index = 0; index < WAITERS + 1; index++) start();
  let holder = await log.next("start", 0);
  const took: number[] = [];
  const kills = new Map<number, number>();
  for (let round = 0; round < ROUNDS; round++) {
    // The holder dies at a random moment of its lease: just after the grant, or after several renewals.
    await delay(random() * (random() < 0.2 ? TTL_MS / 2 : 100));
    const killed = machineMs();
    using watch = new Stopwatch();
    waiters.get(holder.pid)?.kill("SIGKILL");
    waiters.delete(holder.pid);
    kills.set(holder.fence, killed);
    start();
    const next = await log.next("start", holder.fence);
    took.push(watch.ms);
    holder = next;
    expect(failures).toBe("");
  }

  const entries = log.read();
  const starts = entries.filter(({ what }) => what === "start");
  console.log(`lease herd: next holder after ${summary(took)}`);
  expect(overlaps(entries)).toEqual([]);
  expect(starts).toHaveLength(ROUNDS + 1);
  expect(starts.map(({ fence }) => fence)).toEqual(starts.map(({ fence }) => fence).toSorted((a, b) => a - b));
  expect(new Set(starts.map(({ fence }) => fence)).size).toBe(starts.length);
  for (const [index, { at }] of starts.entries()) {
    // No waiter got the lease while the previous holder was alive.
    if (index > 0) expect(at).toBeGreaterThan(kills.get(starts[index - 1]?.fence ?? 0) ?? Number.POSITIVE_INFINITY);
  }
  expect(Math.max(...took)).toBeLessThan(2 * TTL_MS);
});

function summary(took: readonly number[]): string {
  const sorted = took.toSorted((a, b) => a - b);
  const at = (share: number) => sorted[Math.floor(share * (sorted.length - 1))]?.toFixed(0);
  return `${at(0)} to ${at(1)} ms, median ${at(0.5)} ms (TTL ${TTL_MS} ms)`;
}
