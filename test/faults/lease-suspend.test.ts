import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, it, onTestFinished } from "vitest";
import { Leases } from "../../src/sessions/leases.js";
import { openStore } from "../../src/store/store.js";
import { bundleFixture } from "../fixtures/bundle.js";
import { seededRandom } from "../fixtures/random.js";
import { machineMs } from "../fixtures/store/lease-clock.js";
import { LeaseLog, overlaps } from "../fixtures/store/lease-log.js";
import { sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const ROUNDS = process.env.SOAK === undefined ? 2 : 40;
/** How many holders are suspended one after another, each for longer than the TTL of its lease. */
const SUSPENDED = process.env.SOAK === undefined ? 2 : 4;
/** The TTL is so long that, even on a busy machine, no holder loses its lease before the test suspends it. */
const TTL_MS = 3_000;

const program = bundleFixture("lease-waiter");

/** A resource that a lease protects. It refuses each fence that is lower than the highest fence that it has seen. */
class FencedResource {
  #newest = 0;

  accepts(fence: number): boolean {
    if (fence < this.#newest) return false;
    this.#newest = fence;
    return true;
  }
}

async function setUp() {
  const root = await temporaryRoot();
  const store = openStore("file", root);
  await store.sessions.create(sessionRecord("shared"));
  const log = new LeaseLog(join(root, "..", "log"));
  onTestFinished(() => log.close());
  return { root, leases: new Leases(store), log };
}

/** Starts a process that holds the lease and checks it before each write. */
async function startHolder(root: string, log: LeaseLog, ttlMs = TTL_MS) {
  const child = spawn(process.execPath, [program, root, log.path, String(ttlMs), "work"], {
    stdio: ["pipe", "ignore", "pipe"],
  });
  onTestFinished(() => void child.kill("SIGKILL"));
  let stderr = "";
  child.stderr.on("data", (chunk) => {
    stderr += chunk;
  });
  const exited = once(child, "close");
  const before = log.read().findLast(({ what }) => what === "start")?.fence ?? 0;
  const { fence } = await log.next("write", before);
  return { child, exited, fence, stderr: () => stderr };
}

describe("lease holders that stall", () => {
  it(`a lease holder suspended past its TTL gets the abort signal and fails its next check (${ROUNDS} rounds)`, async () => {
    const random = seededRandom("lease suspend");
    const { root, leases, log } = await setUp();
    for (let round = 0; round < ROUNDS; round++) {
      const holder = await startHolder(root, log);
      await delay(random() * 300);
      holder.child.kill("SIGSTOP");
      const next = await leases.acquire({ sessionId: "shared", holder: "next", ttlMs: 60_000, waitMs: 40_000 });
      const since = machineMs();
      expect(next.fence).toBeGreaterThan(holder.fence);
      const resource = new FencedResource();
      expect(resource.accepts(next.fence)).toBe(true);

      holder.child.kill("SIGCONT");
      expect(await holder.exited).toEqual([3, null]);
      expect(holder.stderr()).toMatch(/FLEET_LEASE_LOST/);
      const after = log.read().filter(({ fence, at }) => fence === holder.fence && at > since);
      expect(after.map(({ what }) => what)).toEqual(expect.arrayContaining(["told", "refused"]));
      // A holder that was suspended between its check and its write does that write after it resumes. The protected
      // resource refuses the write, because its fence is lower than that of the next holder.
      const late = after.filter(({ what }) => what === "write");
      expect(late.length).toBeLessThanOrEqual(1);
      expect(late.filter(({ fence }) => resource.accepts(fence))).toEqual([]);

      await next.check();
      await next.release();
    }
  });

  it("a lease holder whose event loop is busy past the TTL gets the abort signal and fails its next check", async () => {
    const { root, leases, log } = await setUp();
    const holder = await startHolder(root, log);
    holder.child.stdin.write(`block ${2 * TTL_MS}\n`);
    const next = await leases.acquire({ sessionId: "shared", holder: "next", ttlMs: 60_000, waitMs: 40_000 });
    expect(await holder.exited).toEqual([3, null]);
    const mine = log.read().filter(({ fence }) => fence === holder.fence);
    expect(
      mine
        .map(({ what }) => what)
        .slice(-2)
        .toSorted(),
    ).toEqual(["refused", "told"]);
    expect(overlaps([...mine, { what: "start", pid: process.pid, fence: next.fence, at: machineMs() }])).toEqual([]);
    await next.check();
    await next.release();
  });

  it("several suspended lease holders lose the lease when they resume, and the newest holder keeps it", async () => {
    const { root, log } = await setUp();
    const holders = [await startHolder(root, log)];
    for (let round = 0; round < SUSPENDED; round++) {
      holders.at(-1)?.child.kill("SIGSTOP");
      holders.push(await startHolder(root, log));
    }
    for (const { child } of holders) child.kill("SIGCONT");
    for (const { exited } of holders.slice(0, -1)) expect(await exited).toEqual([3, null]);
    const entries = log.read();
    const last = holders.at(-1)?.fence;
    expect(entries.filter(({ what }) => what === "told")).toHaveLength(SUSPENDED);
    // A holder that was suspended between its check and its write may do one write after it resumes.
    for (const { fence } of holders) {
      expect(overlaps(entries).filter((entry) => entry.fence === fence).length).toBeLessThanOrEqual(1);
    }
    expect((await log.next("write", (last ?? 0) - 1)).fence).toBe(last);
  });
});
