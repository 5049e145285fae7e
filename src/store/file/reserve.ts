import { rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const BYTES = 1024 * 1024;
const NAME = "reserve";

let isFreed = false;

/**
 * Keeps some space of the disk in a file, so that deletions, leases and the registry can still be written on a full disk.
 * Ignores failures, because the disk may already be full. Does nothing while this process uses the space.
 */
export function keepReserve(root: string): void {
  const path = join(root, NAME);
  if (isFreed || statSync(path, { throwIfNoEntry: false })?.size === BYTES) return;
  try {
    writeFileSync(path, Buffer.alloc(BYTES), { mode: 0o600 });
  } catch {
    // It has as much as there was room for.
  }
}

/** Frees the space. @returns whether there was any */
export function freeReserve(root: string): boolean {
  const path = join(root, NAME);
  const bytes = statSync(path, { throwIfNoEntry: false })?.size ?? 0;
  rmSync(path, { force: true });
  isFreed = true;
  return bytes > 0;
}

/** Keeps the space again, after the changes for which this process freed it. */
export function restoreReserve(root: string): void {
  isFreed = false;
  keepReserve(root);
}
