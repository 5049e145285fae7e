import type { Dirent } from "node:fs";
import { lstat, readdir, rename, unlink, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { systemCode } from "../../errors.js";
import { isSessionId } from "../../model/ids.js";
import { HISTORY } from "../history/session-state.js";
import { incomingPath } from "./copy-folder.js";
import { type Budget, removeIfThere } from "./held-folder.js";
import { ifThereLater } from "./if-there.js";
import { placePath, statOf, TAKEN_FOLDER, takenPath, usable } from "./shared-storage.js";

/**
 * The kinds of files and folders that takeovers leave below a host's name in the shared storage:
 *
 * - `block`: a plain file at the old path of a session that another host has taken over.
 * - `taken`: the original files of a session that another host has taken over. They exist until the takeover deletes
 *   them. A takeover that is killed leaves them behind.
 * - `incoming`: a copy of a session for this host. It exists until the takeover moves it to the session's new path. A
 *   takeover that is killed leaves it behind.
 */
export type RemainKind = "block" | "taken" | "incoming";

export interface Remain {
  kind: RemainKind;
  group: string;
  session: string | null;
  /** Null unless the kind is `taken`. */
  mark: string | null;
  path: string;
  hasHistory: boolean;
  bytes: number;
  /**
   * When any part of this file or folder was last written or moved, by the file system's clock (Unix time in
   * milliseconds).
   */
  changedMs: number;
}

/** The maximum number of entries to measure in one leftover folder, because an agent may have made very many. */
const MOST_MEASURED = 10_000;
/** Matches `<session id>~<mark>`. Session ids do not contain a tilde. */
const TAKEN = /^([^~]+)~([0-9a-f]+)$/;
const INCOMING = /^\.incoming-[0-9a-f]+$/;

export async function findRemains(shared: string, host: string): Promise<Remain[]> {
  return await usable(shared, async () => {
    const found: Remain[] = [];
    const folder = join(shared, "hosts", host);
    for (const { name: group } of (await entriesOf(folder)).filter((entry) => entry.isDirectory())) {
      const place = { shared, host, group };
      for (const entry of await entriesOf(join(folder, group))) {
        if (!entry.isDirectory() || !INCOMING.test(entry.name)) continue;
        found.push(...(await remainAt(join(folder, group, entry.name), { kind: "incoming", group })));
      }
      for (const { name } of await entriesOf(join(folder, group, TAKEN_FOLDER))) {
        const [, session, mark] = TAKEN.exec(name) ?? [];
        if (session === undefined || mark === undefined || !isSessionId(session)) continue;
        found.push(...(await remainAt(takenPath(place, session, mark), { kind: "taken", group, session, mark })));
      }
      for (const entry of await entriesOf(placePath(place))) {
        if (!entry.isFile() || !isSessionId(entry.name)) continue;
        const [block] = await remainAt(join(placePath(place), entry.name), {
          kind: "block",
          group,
          session: entry.name,
        });
        // The block of a takeover is an empty file. Leave out any other file, so that nobody deletes it as a block.
        if (block?.bytes === 0) found.push(block);
      }
    }
    return found;
  });
}

/**
 * Removes a leftover file or folder. Returns false if it no longer exists, or if a session has replaced the block. If
 * two processes remove the same `taken` folder at the same time, both may return true.
 */
export async function removeRemain(shared: string, { kind, path }: Remain): Promise<boolean> {
  return await usable(shared, async () => {
    if (kind !== "block") {
      // Rename an `incoming` copy before its removal, so that a takeover that still runs never finds a half-removed copy.
      const doomed = kind === "incoming" ? incomingPath(dirname(path)) : path;
      const found = await ifThereLater(async () => await (doomed === path ? lstat(path) : rename(path, doomed)));
      await removeIfThere(doomed);
      return found !== null;
    }
    try {
      await unlink(path); // fails if a new session, which is a folder, has replaced the block
      return true;
    } catch (error) {
      if (["ENOENT", "EISDIR", "EPERM"].includes(systemCode(error) ?? "")) return false;
      throw error;
    }
  });
}

/** Puts back a block that should not have been removed, unless a session or another block is already in its place. */
export async function putBlockBack(shared: string, { path }: Remain): Promise<void> {
  await usable(shared, async () => {
    await writeFile(path, "", { flag: "wx", mode: 0o600 }).catch((error: unknown) => {
      if (systemCode(error) !== "EEXIST") throw error;
    });
  });
}

type Named = Pick<Remain, "kind" | "group"> & Partial<Pick<Remain, "session" | "mark">>;

async function remainAt(path: string, { session = null, mark = null, ...named }: Named): Promise<Remain[]> {
  const total = { bytes: 0, changedMs: 0 };
  await measure(path, total, { left: MOST_MEASURED });
  const hasHistory = (await statOf(join(path, HISTORY))) !== null;
  return total.changedMs === 0 ? [] : [{ ...named, session, mark, path, hasHistory, ...total }];
}

/** Ignores entries that vanish during the measurement. */
async function measure(path: string, total: Pick<Remain, "bytes" | "changedMs">, budget: Budget): Promise<void> {
  if (budget.left <= 0) return;
  budget.left -= 1;
  const stat = await statOf(path);
  if (stat === null) return;
  total.changedMs = Math.max(total.changedMs, stat.mtimeMs, stat.ctimeMs);
  if (!stat.isDirectory()) {
    total.bytes += stat.size;
    return;
  }
  for (const { name } of await entriesOf(path)) await measure(join(path, name), total, budget);
}

async function entriesOf(path: string): Promise<Dirent[]> {
  return (await ifThereLater(async () => await readdir(path, { withFileTypes: true }))) ?? [];
}
