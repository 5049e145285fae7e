import { closeSync, fsync, linkSync, openSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { systemCode } from "../../../errors.js";
import { busyError } from "../../failures.js";
import { closeQuietly, makeFolder, scratchName, syncFolder, unlinkQuietly, writeWhole } from "../commit/durable.js";
import { readIfThere } from "../failures.js";
import { ensureStateFolder } from "../state-folder.js";
import { compact } from "./compact.js";
import { type Head, LogFiles, linesIn, NO_LINES, placeOf } from "./files.js";
import { UnsyncedError } from "./unsynced.js";

export type { Head } from "./files.js";

const syncToDisk = promisify(fsync);
const DEADLINE_MS = 10_000;
const MAX_BACKOFF_MS = 20;
/** {@link ChainWriter.tidy} compacts the log once it has this many batches. */
const MOST_BATCHES = 64;

/**
 * Appends to this host's audit log, to which any number of processes write. A commit writes its lines to a file of
 * their own, a batch. It then links the complete file under the number of its first line (as decision 1 does for
 * records). If another process was first, `link` fails, and the commit chains its lines to the new head. So a process
 * that is killed at any moment leaves a complete batch, or nothing.
 *
 * Older batches are joined into segments and then deleted, so their numbers are free again. A process that was
 * suspended before the deletion could link such a number. So each commit checks afterwards whether its batch counts: it
 * must be the newest batch, or the next batch must be chained to it, or a segment must contain it. The newest batch is
 * never deleted.
 */
export class ChainWriter {
  readonly #files: LogFiles;
  readonly #segmentBytes: number;
  /** The head after this process's last commit. Other processes may have committed since then. */
  #head: Head | undefined;
  /** All batches up to this number are known to be on disk. */
  #synced = 0;

  constructor(root: string, { segmentBytes }: { segmentBytes: number }) {
    this.#files = new LogFiles(root);
    this.#segmentBytes = segmentBytes;
  }

  /**
   * Appends lines.
   *
   * @param build makes the lines that follow a head. Runs again if another process was first.
   * @param durable whether the lines, and all lines before them, must survive a loss of power
   * @throws a system error, or FleetError `FLEET_STATE_BUSY`, when none of the lines is in the log
   * @throws UnsyncedError when the lines are in the log, but may not survive a loss of power
   */
  async append(build: (head: Head) => { text: string; head: Head }, { durable }: { durable: boolean }): Promise<void> {
    ensureStateFolder(this.#files.root);
    makeFolder(this.#files.open);
    const until = performance.now() + DEADLINE_MS;
    for (let attempt = 0; ; attempt++) {
      const head = this.#head ?? readHead(this.#files);
      const next = build(head);
      this.#head = undefined;
      if (await this.#commit(head.seq + 1, next, durable)) {
        this.#head = next.head;
        return this.#note(next.head);
      }
      if (performance.now() > until) throw busyError(this.#files.open, "could not be changed");
      await sleep(Math.random() * Math.min(2 ** attempt, MAX_BACKOFF_MS));
    }
  }

  bytes(): number {
    return this.#files.bytes();
  }

  /** Moves batches into segments if there are many. Ignores failures, because a later call tries again. */
  async tidy(): Promise<void> {
    if (this.#files.listBatches().length < MOST_BATCHES) return;
    await compact(this.#files, this.#segmentBytes).catch(() => "later");
  }

  /** Commits a batch. @returns false when another process was first, or has removed the temporary file */
  async #commit(first: number, { text, head }: { text: string; head: Head }, durable: boolean): Promise<boolean> {
    const temp = join(this.#files.open, scratchName("tmp"));
    const fd = openSync(temp, "wx", 0o600);
    try {
      writeWhole(fd, Buffer.from(text));
      try {
        linkSync(temp, this.#files.batchPath(first));
      } catch (error) {
        // ENOENT: a sweep in another PID namespace mistook the file for that of a killed process.
        if (["EEXIST", "ENOENT"].includes(systemCode(error) ?? "")) return false;
        throw error;
      }
      return await this.#settle(fd, first, { head, durable });
    } finally {
      closeQuietly(fd);
      unlinkQuietly(temp);
    }
  }

  async #settle(fd: number, first: number, { head, durable }: { head: Head; durable: boolean }): Promise<boolean> {
    try {
      if (!this.#counts(first, head)) return false;
      if (durable) await this.#sync(fd, first);
      return true;
    } catch (error) {
      // Other processes may have read these lines, or chained lines to them, so this process cannot withdraw them.
      throw new UnsyncedError(error);
    }
  }

  /** Whether the batch that was just linked is part of the log. If not, removes it. */
  #counts(first: number, { hash }: Head): boolean {
    const batches = this.#files.listBatches();
    const at = batches.indexOf(first);
    const next = batches[at + 1];
    if (at !== -1 && next === undefined) return true;
    if (at !== -1 && next !== undefined) {
      const line = linesIn(this.#files.batchPath(next))?.[0];
      if (line !== undefined && placeOf(line)?.prev === hash) return true;
    }
    const segment = this.#files.listSegments().find((each) => each.first <= first && first <= each.last);
    if (segment !== undefined && linesIn(segment.path)?.some((line) => placeOf(line)?.hash === hash)) return true;
    unlinkQuietly(this.#files.batchPath(first));
    return false;
  }

  /** Syncs a batch and all batches before it, because a lost batch would break the chain before the durable lines. */
  async #sync(fd: number, first: number): Promise<void> {
    const before = this.#files.listBatches().filter((each) => each > this.#synced && each < first);
    await Promise.all([syncToDisk(fd), ...before.map((each) => syncFile(this.#files.batchPath(each)))]);
    await syncFolder(this.#files.open);
    this.#synced = first;
  }

  /**
   * Writes the number and the hash of the newest line to `events-head.json`. Ignores failures, because this note only
   * serves to detect that the log has lost its last lines.
   */
  #note({ seq, hash }: Head): void {
    const temp = join(this.#files.root, scratchName("tmp"));
    try {
      writeFileSync(temp, JSON.stringify({ seq, hash }), { mode: 0o600, flag: "wx" });
      renameSync(temp, this.#files.headNote);
    } catch {
      unlinkQuietly(temp);
    }
  }
}

/**
 * The head of the log: the newest line, or the line in `events-head.json` if that is later. In that case, lines were
 * lost, and the log continues after the line in the note, so that the gap stays detectable.
 */
export function readHead(files: LogFiles): Head {
  const noted = files.readNote() ?? NO_LINES;
  const found = newestLine(files);
  return noted.seq > found.seq ? noted : found;
}

function newestLine(files: LogFiles): Head {
  for (;;) {
    const batch = files.listBatches().at(-1);
    const segment = batch === undefined ? files.listSegments().at(-1) : undefined;
    if (batch === undefined && segment === undefined) return NO_LINES;
    const lines = linesIn(segment?.path ?? files.batchPath(batch ?? 0));
    if (lines === undefined) continue; // another process has moved the batch into a segment: list again
    const last = placeOf(lines.at(-1) ?? "");
    // If the last line is damaged, continue after it with a hash that no line has, so that the break is detected.
    return last ?? { seq: segment?.last ?? (batch ?? 0) + Math.max(lines.length - 1, 0), hash: "damaged" };
  }
}

async function syncFile(path: string): Promise<void> {
  const fd = readIfThere(path, () => openSync(path, "r"));
  if (fd === undefined) return; // it has become part of a segment, which is synced
  try {
    await syncToDisk(fd);
  } finally {
    closeSync(fd);
  }
}
