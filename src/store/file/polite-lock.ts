import { setTimeout as sleep } from "node:timers/promises";
import { systemCode } from "../../errors.js";

const STALE_MS = 2_000;
const MAX_WAIT_MS = 80;

type Release = () => Promise<void>;

/**
 * Lets writers pass one after the other, which saves them the retries. That is all: the wait is short, a lock that is
 * not had by then is done without, and one that is lost meanwhile changes nothing (see commit.ts for what does decide).
 * So a holder that was killed costs the next writer the wait, and nobody anything else.
 */
export async function enterPolitely(folder: string): Promise<Release> {
  const until = performance.now() + MAX_WAIT_MS;
  for (;;) {
    try {
      return await acquire(folder);
    } catch (error) {
      // Anything but ELOCKED: no lock can be had here. Whether a commit can is for the commit to find out.
      if (systemCode(error) !== "ELOCKED" || performance.now() >= until) return async () => undefined;
    }
    await sleep(4 + Math.random() * 8);
  }
}

async function acquire(folder: string): Promise<Release> {
  // Not at the top: commands that only read start faster without it.
  const { default: lockfile } = await import("proper-lockfile");
  const release = await lockfile.lock(folder, {
    lockfilePath: `${folder}.lock`,
    realpath: false,
    stale: STALE_MS,
    // By default this throws from a timer, which ends the process.
    onCompromised: () => undefined,
  });
  // It fails when the lock was taken for stale and removed by somebody else: then there is nothing to release.
  return () => release().catch(() => undefined);
}
