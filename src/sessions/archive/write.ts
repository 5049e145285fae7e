import { createHash } from "node:crypto";
import { closeSync, createReadStream } from "node:fs";
import { open, rm } from "node:fs/promises";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { createGzip } from "node:zlib";
import { FleetError, quote } from "../../base/errors.js";
import { DEEPEST, type HeldFolder } from "../../base/held-folder.js";
import type { SessionRecord } from "../../base/session.js";
import {
  type ArchivedFile,
  FORMAT,
  isAllowedPath,
  type Manifest,
  MOST_BYTES,
  MOST_ENTRIES,
  VERSION,
} from "./manifest.js";
import { END, entryName, headerOf, MANIFEST_NAME, padding } from "./tar.js";

export interface Written {
  bytes: number;
  /** How many files the archive leaves out: links, pipes, devices, and files with names that an archive cannot have. */
  leftOut: number;
}

/**
 * Writes the archive of a session to a new file, and syncs it to disk. The session must not change during the call.
 *
 * @param folder the session's folder; null if the session had no turn
 * @throws FleetError `FLEET_SESSION_BUSY` when a file changed; `FLEET_CONTENT_TOO_LARGE`.
 */
export async function writeArchive(path: string, record: SessionRecord, folder: HeldFolder | null): Promise<Written> {
  const found: Found = { folders: [], files: [], leftOut: 0, bytes: 0 };
  if (folder !== null) await collect(folder, "", found, record.id);
  const { folders, files, leftOut } = found;
  const { id, purpose, title = null, model, tools = null, ttlMs, createdAt, lastUsedAt, turns } = record;
  const session = { id, purpose, title, model, tools, ttlMs, createdAt, lastUsedAt, turns };
  const exportedAt = new Date().toISOString();
  const manifest: Manifest = { format: FORMAT, version: VERSION, exportedAt, session, folders, files };
  const file = await open(path, "wx", 0o600);
  const target = file.createWriteStream({ flush: true });
  try {
    await pipeline(Readable.from(entries(manifest, folder)), createGzip(), target);
  } catch (error) {
    await rm(path, { force: true });
    throw error;
  }
  return { bytes: target.bytesWritten, leftOut };
}

interface Found {
  folders: string[];
  files: ArchivedFile[];
  leftOut: number;
  bytes: number;
}

async function collect(folder: HeldFolder, above: string, found: Found, id: string): Promise<void> {
  const { entries: listed, more } = folder.entries(MOST_ENTRIES - found.folders.length - found.files.length);
  if (more) throw tooLarge(id, `has more than ${MOST_ENTRIES} files and folders`);
  for (const { name } of listed.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const path = `${above}${name}`;
    const stats = folder.lstat(name);
    if (stats === undefined) continue;
    if (!isAllowedPath(path)) {
      // Do not count the file by which a server marks the session as loaded, because it is not a part of the session.
      if (!/^inuse\./.test(name)) found.leftOut++;
    } else if (stats.isDirectory()) {
      using child = path.split("/").length < DEEPEST ? folder.folder(name) : null;
      if (child === null) {
        found.leftOut++;
        continue;
      }
      found.folders.push(path);
      await collect(child, `${path}/`, found, id);
    } else if (stats.isFile()) {
      // Check the size before the file is read, because an agent can make a file of any size without using the disk.
      if (found.bytes + stats.size > MOST_BYTES) throw tooLarge(id, `has more than ${MOST_BYTES} bytes`);
      found.files.push(await measured(folder, name, path));
      found.bytes += found.files.at(-1)?.bytes ?? 0;
    } else {
      found.leftOut++;
    }
  }
}

async function measured(folder: HeldFolder, name: string, path: string): Promise<ArchivedFile> {
  const hash = createHash("sha256");
  let bytes = 0;
  for await (const chunk of contentOf(folder, name)) {
    hash.update(chunk);
    bytes += chunk.length;
  }
  return { path, bytes, sha256: hash.digest("hex") };
}

/** Yields the bytes of a file. Yields nothing if the path is no longer a file. */
async function* contentOf(folder: HeldFolder, name: string): AsyncGenerator<Buffer> {
  const fd = folder.file(name);
  if (fd === null) return;
  try {
    yield* createReadStream("", { fd, autoClose: false, start: 0, end: MOST_BYTES });
  } finally {
    closeSync(fd);
  }
}

async function* entries(manifest: Manifest, folder: HeldFolder | null): AsyncGenerator<Buffer> {
  const listed = Buffer.from(`${JSON.stringify(manifest, null, 1)}\n`);
  yield headerOf(MANIFEST_NAME, listed.length);
  yield listed;
  yield Buffer.alloc(padding(listed.length));
  for (const [index, file] of manifest.files.entries()) {
    if (folder === null) break;
    yield headerOf(entryName(file.path, index), file.bytes);
    yield* unchanged(folder, file, manifest.session.id);
    yield Buffer.alloc(padding(file.bytes));
  }
  yield END;
}

/** Yields the bytes of a file. @throws FleetError `FLEET_SESSION_BUSY` when the file is not as the manifest lists it */
async function* unchanged(top: HeldFolder, { path, bytes, sha256 }: ArchivedFile, id: string): AsyncGenerator<Buffer> {
  const hash = createHash("sha256");
  let left = bytes;
  const names = path.split("/");
  const last = names.pop() ?? "";
  using folder = below(top, names);
  for await (const chunk of folder === null ? [] : contentOf(folder.held, last)) {
    left -= chunk.length;
    if (left < 0) break;
    hash.update(chunk);
    yield chunk;
  }
  if (left === 0 && hash.digest("hex") === sha256) return;
  throw new FleetError("FLEET_SESSION_BUSY", `A file of session ${quote(id)} changed during the export.`, {
    suggestions: ["Try again when no client is connected directly to the user's server."],
  });
}

/**
 * Opens the folder with these path components below `top`; null if it does not exist. Disposing the result leaves `top`
 * open.
 */
function below(top: HeldFolder, names: readonly string[]): (Disposable & { held: HeldFolder }) | null {
  let held = top;
  for (const name of names) {
    const next = held.folder(name);
    if (held !== top) held[Symbol.dispose]();
    if (next === null) return null;
    held = next;
  }
  return { held, [Symbol.dispose]: () => (held === top ? undefined : held[Symbol.dispose]()) };
}

function tooLarge(id: string, why: string): FleetError {
  return new FleetError("FLEET_CONTENT_TOO_LARGE", `Session ${quote(id)} ${why}, which an archive cannot hold.`, {
    suggestions: ["Delete files that the session no longer needs."],
  });
}
