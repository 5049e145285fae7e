import { setTimeout as sleep } from "node:timers/promises";
import { systemCode } from "../../errors.js";

const STALE_MS = 2_000;
const MAX_WAIT_MS = 80;

type Release = () => Promise<void>;

/**
 * Acquires a lock, with which writers commit one after another. This saves retries. After `waitMs`, a writer continues
 * without the lock, because correctness does not depend on it (decision 1). Never rejects.
 */
export async function enterPolitely(folder: string, waitMs = MAX_WAIT_MS): Promise<Release> {
  const until = performance.now() + waitMs;
  for (;;) {
    try {
      return await acquire(folder);
    } catch (error) {
      // Continue without the lock when the time is up, or when the folder cannot be locked (an error other than
      // ELOCKED). In that case the commit probably fails, too, and its error gives the reason.
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
    // The library's default throws from a timer, which ends the process.
    onCompromised: () => undefined,
  });
  // Releasing fails if another process has removed the lock because it looked stale. Then there is nothing to release.
  return () => release().catch(() => undefined);
}
