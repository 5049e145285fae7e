import { rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const BYTES = 1024 * 1024;
const NAME = "reserve";

let isFreed = false;

/**
 * Keeps some space of the disk in a file, so that deletions, leases and the registry can still be written on a full
 * disk. If the disk has too little room, keeps nothing. Does nothing while this process uses the space.
 */
export function keepReserve(root: string): void {
  const path = join(root, NAME);
  const bytes = statSync(path, { throwIfNoEntry: false })?.size;
  if (isFreed || bytes === BYTES) return;
  if (!fill(path) && bytes === undefined) rmSync(path, { force: true });
}

/** Frees the space. @returns whether there was any */
export function freeReserve(root: string): boolean {
  const path = join(root, NAME);
  const bytes = statSync(path, { throwIfNoEntry: false })?.size ?? 0;
  rmSync(path, { force: true });
  isFreed = true;
  return bytes > 0;
}

/** Keeps the space again, or as much as there is, if this process freed it for a change. */
export function restoreReserve(root: string): void {
  if (!isFreed) return;
  isFreed = false;
  fill(join(root, NAME));
}

/** @returns whether there was enough room */
function fill(path: string): boolean {
  try {
    writeFileSync(path, Buffer.alloc(BYTES), { mode: 0o600 });
    return true;
  } catch {
    return false;
  }
}
