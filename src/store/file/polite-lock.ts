import { setTimeout as sleep } from "node:timers/promises";
import { systemCode } from "../../errors.js";

const STALE_MS = 2_000;
const MAX_WAIT_MS = 80;

type Release = () => Promise<void>;

/**
 * Lets writers commit one after another, which saves them retries. Correctness does not depend on the lock (decision 1):
 * a writer waits only briefly, and then continues without it.
 */
export async function enterPolitely(folder: string): Promise<Release> {
  const until = performance.now() + MAX_WAIT_MS;
  for (;;) {
    try {
      return await acquire(folder);
    } catch (error) {
      // An error other than ELOCKED means that this folder cannot be locked. The commit will find out whether it can be
      // written.
      if (systemCode(error) !== "ELOCKED" || performance.now() >= until) return async () => undefined;
    }
    await sleep(4 + Math.random() * 8);
  }
}

async function acquire(folder: string): Promise<Release> {
  // Import it only here, so that commands that only read start faster.
  const { default: lockfile } = await import("proper-lockfile");
  const release = await lockfile.lock(folder, {
    lockfilePath: `${folder}.lock`,
    realpath: false,
    stale: STALE_MS,
    // The default throws from a timer, which ends the process.
    onCompromised: () => undefined,
  });
  // This fails if another process took the lock for stale and removed it. Then there is nothing to release.
  return () => release().catch(() => undefined);
}
