import { setTimeout as sleep } from "node:timers/promises";
import { getSystemErrorMap } from "node:util";
import { FleetError, quote, systemCode } from "../../base/errors.js";
import { filesExhausted, lacksFiles } from "../../base/system/own-limits.js";
import { shellQuote } from "../../base/values/text.js";
import type { Writes } from "../update-queue.js";
import type { StepHook } from "./commit.js";
import type { Instant } from "./records/lease-records.js";

/**
 * Converts a system error of a read or a write into `FLEET_STATE_UNWRITABLE`, or into `FLEET_FILES_EXHAUSTED` if this process
 * cannot open any more files. Returns other errors, such as errors from bugs, unchanged.
 */
export function mediumError(action: "read" | "write", path: string, error: unknown): unknown {
  const code = systemCode(error);
  if (error instanceof FleetError || code === undefined) return error;
  if (lacksFiles(error)) return filesExhausted(error);
  const verb = action === "read" ? "read" : "written";
  return new FleetError("FLEET_STATE_UNWRITABLE", `The state in ${quote(path)} cannot be ${verb}: ${reason(error)}.`, {
    suggestions: [isFull(error) ? `df -h ${shellQuote(path)}` : `ls -ld ${shellQuote(path)}`],
    cause: error,
  });
}

/** Whether a write failed because the disk, or the user's share of it, is full. */
export function isFull(error: unknown): boolean {
  return ["ENOSPC", "EDQUOT"].includes(systemCode(error) ?? "");
}

/** The system's description of the error, such as `no space left on device (ENOSPC)`. */
export function reason(error: unknown): string {
  const code = systemCode(error);
  if (code === undefined) return error instanceof Error ? error.message : String(error);
  const errno = error instanceof Error && "errno" in error && typeof error.errno === "number" ? error.errno : 0;
  const words = getSystemErrorMap().get(errno)?.[1];
  return words === undefined ? code : `${words} (${code})`;
}

/** Reads a file or folder. @returns undefined when it does not exist */
export function readIfThere<T>(path: string, read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (systemCode(error) === "ENOENT") return undefined;
    throw mediumError("read", path, error);
  }
}

/** Makes a system call. @returns whether it failed with one of these error codes. @throws any other error. */
export async function failsWith(codes: readonly string[], call: () => unknown): Promise<boolean> {
  try {
    await call();
    return false;
  } catch (error) {
    if (codes.includes(systemCode(error) ?? "")) return true;
    throw error;
  }
}

export async function writing<T>(path: string, write: () => Promise<T>): Promise<T> {
  try {
    return await write();
  } catch (error) {
    throw mediumError("write", path, error);
  }
}

export interface StoreContext {
  /** The path of the state folder. */
  root: string;
  /** How long one update retries before it fails with `FLEET_STATE_BUSY`, in milliseconds. */
  deadlineMs: number;
  onStep: StepHook | undefined;
  /** Reads the clock for leases. */
  leaseNow: () => Instant;
  writes: Writes;
  /** Reports a problem that did not make the operation fail. */
  warn: (message: string) => void;
  /** Throws if the state folder is unsafe. */
  checkRoot: () => void;
  /** Like `checkRoot`, but creates the state folder if necessary. */
  ensureRoot: () => void;
}

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
