import { randomBytes } from "node:crypto";
import { closeSync, fsyncSync, mkdirSync, openSync } from "node:fs";
import { type FileHandle, open, unlink } from "node:fs/promises";
import { dirname } from "node:path";

/** A name that no other write uses, and that tells a later sweep whose it was. */
export function scratchName(kind: "tmp" | "trash"): string {
  return `.${kind}-${process.pid}-${randomBytes(6).toString("hex")}`;
}

/**
 * Writes a new file and forces it to the disk. Resolves with the handle, still open; a file that could not be written
 * whole is removed.
 */
export async function writeNewFile(path: string, bytes: Buffer): Promise<FileHandle> {
  const handle = await open(path, "wx", 0o600);
  try {
    // The umask may have taken bits away from the mode above; here the mode carries meaning (see commit.ts).
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

/** On a nearly full disk a write may take only the first part of the bytes and report no error. */
async function writeWhole(handle: FileHandle, bytes: Buffer): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await handle.write(bytes, done, bytes.length - done, done);
    if (bytesWritten === 0) throw Object.assign(new Error("write() made no progress"), { code: "EIO" });
    done += bytesWritten;
  }
}

/** Makes the names in a folder durable: what was created, linked or renamed there. */
export async function syncFolder(path: string): Promise<void> {
  const handle = await open(path, "r");
  try {
    await handle.sync();
  } finally {
    await closeQuietly(handle);
  }
}

/** Creates a private folder and those above it, durably. One that exists is left as it is. */
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

/** For a handle whose bytes are either synced already or given up: closing it can no longer change what is stored. */
export async function closeQuietly(handle: FileHandle): Promise<void> {
  await handle.close().catch(ignore);
}

/** For a scratch file: one that cannot be removed now is swept by a later write. */
export async function unlinkQuietly(path: string): Promise<void> {
  await unlink(path).catch(ignore);
}

function ignore(): void {
  // Both callers say why nothing can be lost.
}
