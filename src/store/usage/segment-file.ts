import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import type { LedgerLine } from "../../model/usage/usage.js";
import { readIfThere } from "../file/failures.js";

/** How much is read at once, in bytes. A piece is so small that a process can serve others between two pieces. */
const PIECE_BYTES = 128 * 1024;

/** Complete lines of a segment, and their part of the segment. */
export interface Piece {
  lines: LedgerLine[];
  /** Whether the part also has lines that a full disk has cut off. These are left out. */
  hasTorn: boolean;
  from: number;
  end: number;
}

/**
 * A segment that is open for reading. It stays the same file with the same lines when a purge replaces the segment. Lines that
 * are appended after it was opened are not in it.
 */
export class SegmentFile {
  readonly fd: number;
  /** The number of the file in the file system. A purge changes it, because it replaces the segment. */
  readonly ino: number;
  /** Tells the file from an earlier one that had the same number, also after that file was closed. */
  readonly id: string;
  readonly size: number;

  /** @returns null if the file does not exist */
  static open(path: string): SegmentFile | null {
    const fd = readIfThere(path, () => openSync(path, "r"));
    return fd === undefined ? null : new SegmentFile(fd);
  }

  private constructor(fd: number) {
    this.fd = fd;
    const { ino, size, birthtimeMs, ctimeMs } = fstatSync(fd);
    this.ino = ino;
    this.size = size;
    // Some file systems know no time of birth. Node then gives the time of the last change.
    this.id = birthtimeMs === ctimeMs ? String(ino) : `${ino} ${birthtimeMs}`;
  }

  /** Reads a part, which begins after a line. */
  *pieces(from = 0, to = this.size): Generator<Piece> {
    for (let at = from, length = PIECE_BYTES; at < to; ) {
      const bytes = this.#read(at, Math.min(at + length, to));
      const whole = bytes.subarray(0, bytes.lastIndexOf(0x0a) + 1);
      if (whole.length === 0 && at + length >= to) return;
      // A line may be longer than a piece.
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

  /** Lines that were appended after the file was opened, from the end of the last piece. */
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
    // One call takes a fraction of the time that one call for each line takes.
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
