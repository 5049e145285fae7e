import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import type { LedgerLine } from "../../model/usage/usage.js";
import { readIfThere } from "../file/failures.js";

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
