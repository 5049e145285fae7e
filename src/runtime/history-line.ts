/** Longer lines are not kept whole: a tool's output may be megabytes, and nothing of it is needed. */
const WHOLE_BYTES = 1024 * 1024;
const END_BYTES = 4096;
const NEWLINE = 10;

/** A line without its newline. Of one longer than a megabyte there are the first and the last 4 KB. */
export type Line = { whole: Buffer } | { head: Buffer; tail: Buffer };

/** Cuts what is read, in pieces of any size, into lines. What comes out does not depend on how it was cut. */
export class LineSplitter {
  /** The beginning of a line whose end has not been read. */
  #parts: Buffer[] = [];
  #bytes = 0;
  #skipping: boolean;

  /** @param options.skipFirst The reading begins within a line, which is left out. */
  constructor(options: { skipFirst?: boolean } = {}) {
    this.#skipping = options.skipFirst === true;
  }

  *push(chunk: Buffer): Generator<Line> {
    let from = 0;
    for (let at = chunk.indexOf(NEWLINE); at !== -1; at = chunk.indexOf(NEWLINE, from)) {
      const line = this.#line(chunk.subarray(from, at));
      from = at + 1;
      if (!this.#skipping) yield line;
      this.#skipping = false;
    }
    if (!this.#skipping && from < chunk.length) this.#keep(chunk.subarray(from));
  }

  #line(end: Buffer): Line {
    const bytes = this.#bytes + end.length;
    const joined = this.#parts.length === 0 ? end : Buffer.concat([...this.#parts, end]);
    this.#parts = [];
    this.#bytes = 0;
    return bytes <= WHOLE_BYTES ? { whole: joined } : endsOf(joined);
  }

  #keep(part: Buffer): void {
    // A copy: whoever reads uses the memory again.
    this.#parts.push(Buffer.from(part));
    this.#bytes += part.length;
    if (this.#bytes <= WHOLE_BYTES) return;
    const { head, tail } = endsOf(Buffer.concat(this.#parts));
    this.#parts = [Buffer.from(head), Buffer.from(tail)];
  }
}

function endsOf(line: Buffer): { head: Buffer; tail: Buffer } {
  return { head: line.subarray(0, END_BYTES), tail: line.subarray(-END_BYTES) };
}
