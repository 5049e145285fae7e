import { randomBytes } from "node:crypto";
import { closeSync, fsyncSync, mkdirSync, openSync } from "node:fs";
import { type FileHandle, open, unlink } from "node:fs/promises";
import { dirname } from "node:path";

/** A name that no other write uses. It contains the PID, so that a later sweep knows whose file it is. */
export function scratchName(kind: "tmp" | "trash"): string {
  return `.${kind}-${process.pid}-${randomBytes(6).toString("hex")}`;
}

/** Writes a new file and syncs it to disk. If it cannot be written completely, removes it. */
export async function writeNewFile(path: string, bytes: Buffer): Promise<FileHandle> {
  const handle = await open(path, "wx", 0o600);
  try {
    // The umask may have removed bits from the mode above, and commit.ts depends on the exact mode.
    await handle.chmod(0o600);
    await writeWhole(handle, bytes);
    await handle.sync();
    return handle;
  } catch (error) {
    await closeQuietly(handle);
    await unlinkQuietly(path);
    throw error;
  }
}

/**
 * Writes all bytes, in several calls if necessary. On a nearly full disk, one call may write only the first bytes without an
 * error.
 */
async function writeWhole(handle: FileHandle, bytes: Buffer): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await handle.write(bytes, done, bytes.length - done, done);
    if (bytesWritten === 0) throw Object.assign(new Error("write() made no progress"), { code: "EIO" });
    done += bytesWritten;
  }
}

export async function syncFolder(path: string): Promise<void> {
  const handle = await open(path, "r");
  try {
    await handle.sync();
  } finally {
    await closeQuietly(handle);
  }
}

/** Creates a private folder and its missing parents durably. Existing folders stay as they are. */
export function makeFolder(path: string): void {
  const first = mkdirSync(path, { recursive: true, mode: 0o700 });
  if (first === undefined) return;
  for (let made = path; ; made = dirname(made)) {
    const parent = openSync(dirname(made), "r");
    try {
      fsyncSync(parent);
    } finally {
      closeSync(parent);
    }
    if (made === first || made === dirname(made)) return;
  }
}

/** Closes a handle and ignores failures. Call it only if the written bytes are already synced or not needed. */
export async function closeQuietly(handle: FileHandle): Promise<void> {
  await handle.close().catch(() => "harmless");
}

/** Removes a temporary file. If that fails, a later write sweeps it. */
export async function unlinkQuietly(path: string): Promise<void> {
  await unlink(path).catch(() => "harmless");
}
