import {
  closeSync,
  existsSync,
  fstatSync,
  fsync,
  openSync,
  readdirSync,
  readSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { systemCode } from "../../base/errors.js";
import { dayOf, type LedgerLine } from "../../base/usage.js";
import { makeFolder } from "../file/durable.js";
import { readIfThere } from "../file/failures.js";

/** When a segment has reached this size, in bytes, it is sealed: processes write later lines to the next segment. */
const SEGMENT_BYTES = 64 * 1024 * 1024;
/** How long written lines may wait until they are synced to disk, in milliseconds. */
const SYNC_MS = 1_000;
const NAME = /^(\d{8})\.jsonl$/;

/**
 * The lines of the ledger on the disk of this host, in numbered files. All processes append to the file with the
 * highest number. Each batch is one write to the end of the file, so that lines of different processes do not mix. If a
 * process is killed after the write, nothing is lost. A power failure may lose the last second.
 *
 * A batch begins with an empty line, so that it does not continue a line that a full disk has cut off.
 */
export class Segments {
  readonly folder: string;
  readonly #ensureRoot: () => void;
  #open: { number: number; fd: number } | undefined;
  #syncing: NodeJS.Timeout | undefined;

  constructor(folder: string, ensureRoot: () => void) {
    this.folder = folder;
    this.#ensureRoot = ensureRoot;
  }

  /** The numbers of all segments, in order. */
  numbers(): number[] {
    const names = readIfThere(this.folder, () => readdirSync(this.folder)) ?? [];
    return names
      .flatMap((name) => NAME.exec(name)?.[1] ?? [])
      .map(Number)
      .sort((a, b) => a - b);
  }

  pathOf(number: number): string {
    return join(this.folder, `${String(number).padStart(8, "0")}.jsonl`);
  }

  sumsPathOf(number: number): string {
    return this.pathOf(number).replace(/jsonl$/, "sums");
  }

  /** Deletes a segment and its sums. */
  remove(number: number): void {
    for (const path of [this.pathOf(number), this.sumsPathOf(number)]) rmSync(path, { force: true });
  }

  /**
   * Appends lines to the newest segment.
   *
   * @returns how many of the lines were appended. On a full disk, these may be only the first few.
   * @throws a system error if no line was appended
   */
  append(lines: readonly LedgerLine[]): number {
    const texts = lines.map((line) => Buffer.from(JSON.stringify(line)));
    let done = 0;
    while (done < texts.length) {
      try {
        done += writeLines(this.#current().fd, texts.slice(done));
      } catch (error) {
        if (done === 0) throw error;
        break;
      }
    }
    this.#syncing ??= setTimeout(() => this.#sync(), SYNC_MS).unref();
    return done;
  }

  #sync(): void {
    this.#syncing = undefined;
    if (this.#open !== undefined) fsync(this.#open.fd, () => undefined);
  }

  /** Starts a new segment for later lines. A process that has already chosen the old segment may still append to it. */
  seal(): void {
    const open = this.#current();
    if (fstatSync(open.fd).size > 0) this.#next(open);
  }

  /** Seals the newest segment if it began on an earlier day, because only sealed segments are deleted as too old. */
  async sealOld(): Promise<void> {
    const newest = this.numbers().at(-1);
    if (newest === undefined) return;
    const first = await this.using(newest, async (segment) => segment.pieces().next().value?.lines[0]);
    if (first !== undefined && dayOf(first.at) < dayOf(Date.now())) this.seal();
  }

  /** Syncs the written lines to disk. */
  async close(): Promise<void> {
    clearTimeout(this.#syncing);
    this.#syncing = undefined;
    const open = this.#open;
    this.#open = undefined;
    if (open !== undefined) await syncAndClose(open.fd);
  }

  #current(): { number: number; fd: number } {
    let open = this.#open;
    // Somebody may have deleted the segments while this process wrote nothing.
    if (open === undefined || fstatSync(open.fd).nlink === 0) open = this.#openNumber(this.numbers().at(-1) ?? 1);
    while (existsSync(this.pathOf(open.number + 1))) open = this.#openNumber(open.number + 1);
    return fstatSync(open.fd).size < SEGMENT_BYTES ? open : this.#next(open);
  }

  /** Opens the next segment. If the old segment lacks its last newline, adds it, because no later batch will. */
  #next({ number, fd }: { number: number; fd: number }): { number: number; fd: number } {
    if (!endsLine(fd)) writeSync(fd, NEWLINE);
    return this.#openNumber(number + 1);
  }

  #openNumber(number: number): { number: number; fd: number } {
    const path = this.pathOf(number);
    let fd: number;
    try {
      fd = openSync(path, "a+", 0o600);
    } catch (error) {
      if (systemCode(error) !== "ENOENT") throw error;
      this.#ensureRoot();
      makeFolder(this.folder);
      fd = openSync(path, "a+", 0o600);
    }
    if (this.#open !== undefined) void syncAndClose(this.#open.fd);
    this.#open = { number, fd };
    return this.#open;
  }

  /**
   * The size of a segment in bytes, its inode number, and the time of its last write in milliseconds since the epoch.
   * All are 0 if it does not exist.
   */
  stateOf(number: number): { size: number; ino: number; writtenMs: number } {
    const { size = 0, ino = 0, mtimeMs = 0 } = statSync(this.pathOf(number), { throwIfNoEntry: false }) ?? {};
    return { size, ino, writtenMs: mtimeMs };
  }

  /** Calls `use` with an open segment. Resolves with undefined if the segment does not exist. */
  async using<T>(number: number, use: (segment: SegmentFile) => Promise<T>): Promise<T | undefined> {
    const segment = SegmentFile.open(this.pathOf(number));
    if (segment === null) return undefined;
    try {
      return await use(segment);
    } finally {
      segment.close();
    }
  }
}

async function syncAndClose(fd: number): Promise<void> {
  // A failed sync matters only after a power failure, and the next write to the disk reports the problem, too.
  await promisify(fsync)(fd).catch(() => undefined);
  closeSync(fd);
}

const NEWLINE = Buffer.from("\n");

/** Whether the file is empty, or ends with a newline. */
function endsLine(fd: number): boolean {
  const { size } = fstatSync(fd);
  const last = Buffer.alloc(1);
  return size === 0 || readSync(fd, last, 0, 1, size - 1) === 0 || last.equals(NEWLINE);
}

/** Appends lines in one write. @returns how many of them are complete in the file, which may be few on a full disk */
function writeLines(fd: number, texts: readonly Buffer[]): number {
  const bytes = Buffer.concat([NEWLINE, ...texts.flatMap((text) => [text, NEWLINE])]);
  const written = writeSync(fd, bytes);
  if (written === bytes.length) return texts.length;
  // The next batch begins with a newline, so a line that lacks only its newline counts as written.
  let end = NEWLINE.length;
  const missing = texts.findIndex((text) => {
    const isThere = end + text.length <= written;
    end += text.length + NEWLINE.length;
    return !isThere;
  });
  return missing === -1 ? texts.length : missing;
}

/** How much is read at once, in bytes. Small, so that the process can do other work after a short time. */
const PIECE_BYTES = 128 * 1024;

/** Complete lines of a segment, and the part of the segment (`from` to `end`, in bytes) that contains them. */
export interface Piece {
  lines: LedgerLine[];
  /** Whether the part also contains lines that a full disk has cut off. `lines` omits them. */
  hasTorn: boolean;
  from: number;
  end: number;
}

/**
 * A segment that is open for reading. If a purge replaces the segment, this object still reads the old file.
 * {@link pieces} ignores lines that are appended after the file was opened; {@link late} reads them.
 */
export class SegmentFile {
  readonly fd: number;
  /** The inode number. A purge changes it, because it replaces the file. */
  readonly ino: number;
  /** Like `ino`, but also differs from a deleted file with the same number if the file system records birth times. */
  readonly id: string;
  readonly size: number;

  /** Opens a segment. @returns null if the file does not exist */
  static open(path: string): SegmentFile | null {
    const fd = readIfThere(path, () => openSync(path, "r"));
    return fd === undefined ? null : new SegmentFile(fd);
  }

  private constructor(fd: number) {
    this.fd = fd;
    const { ino, size, birthtimeMs, ctimeMs } = fstatSync(fd);
    this.ino = ino;
    this.size = size;
    // Some file systems do not record a time of birth. Node.js then returns the time of the last change, which varies.
    this.id = birthtimeMs === ctimeMs ? String(ino) : `${ino} ${birthtimeMs}`;
  }

  /** Reads the complete lines of a part. `from` must be the start of a line. */
  *pieces(from = 0, to = this.size): Generator<Piece> {
    for (let at = from, length = PIECE_BYTES; at < to; ) {
      const bytes = this.#read(at, Math.min(at + length, to));
      const whole = bytes.subarray(0, bytes.lastIndexOf(0x0a) + 1);
      if (whole.length === 0 && at + length >= to) return;
      // If a line is longer than a piece, read more at once.
      length = whole.length === 0 ? 2 * length : PIECE_BYTES;
      if (whole.length === 0) continue;
      const end = at + whole.length;
      yield { ...parseLines(whole.toString("utf8")), from: at, end };
      at = end;
    }
  }

  #read(from: number, to: number): Buffer {
    const bytes = Buffer.alloc(to - from);
    let done = 0;
    while (done < bytes.length) {
      const read = readSync(this.fd, bytes, done, bytes.length - done, from + done);
      if (read === 0) break;
      done += read;
    }
    return bytes.subarray(0, done);
  }

  /** Reads the lines that were appended after the file was opened. @param end the end of the last piece */
  late(end: number): LedgerLine[] {
    return [...this.pieces(end, fstatSync(this.fd).size)].flatMap(({ lines }) => lines);
  }

  close(): void {
    closeSync(this.fd);
  }
}

function parseLines(text: string): Pick<Piece, "lines" | "hasTorn"> {
  const texts = text.split("\n").filter((line) => line !== "");
  try {
    // One call for all lines takes a fraction of the time of one call per line.
    return { lines: JSON.parse(`[${texts.join(",")}]`) as LedgerLine[], hasTorn: false };
  } catch {
    const lines = texts.flatMap((line) => {
      try {
        return [JSON.parse(line) as LedgerLine];
      } catch {
        return [];
      }
    });
    return { lines, hasTorn: lines.length < texts.length };
  }
}
