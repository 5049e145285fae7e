/**
 * The frames of the runtime's protocol: JSON-RPC 2.0 messages after a `Content-Length` header, as in the base protocol of
 * the Language Server Protocol.
 */

/** The longest frame that we accept, in bytes: far above what the runtime sends, far below what would exhaust memory. */
const MAX_FRAME_BYTES = 256 * 1024 * 1024;
const MAX_HEADER_BYTES = 8 * 1024;
const HEADER_END = "\r\n\r\n";

/** Encodes one message as one buffer. With header and body in one write, Nagle's algorithm has nothing to hold back. */
export function encodeFrame(message: unknown): Buffer {
  const body = Buffer.from(JSON.stringify(message));
  return Buffer.concat([Buffer.from(`Content-Length: ${body.length}\r\n\r\n`), body]);
}

/** Splits a byte stream into messages. Throws on input that is not this protocol; the stream is then unusable. */
export class FrameDecoder {
  #pending: Buffer[] = [];
  #pendingBytes = 0;
  #bodyBytes: number | null = null;

  /** Whether a frame has begun to arrive and is not complete. */
  get incomplete(): boolean {
    return this.#pendingBytes > 0 || this.#bodyBytes !== null;
  }

  push(chunk: Buffer): unknown[] {
    this.#pending.push(chunk);
    this.#pendingBytes += chunk.length;
    const messages: unknown[] = [];
    for (;;) {
      if (this.#bodyBytes === null) {
        const header = this.#takeHeader();
        if (header === null) return messages;
        this.#bodyBytes = parseContentLength(header);
      }
      const body = this.#take(this.#bodyBytes);
      if (body === null) return messages;
      this.#bodyBytes = null;
      messages.push(JSON.parse(body.toString("utf8")));
    }
  }

  #takeHeader(): string | null {
    const joined = this.#join();
    const end = joined.indexOf(HEADER_END);
    if (end === -1) {
      if (joined.length > MAX_HEADER_BYTES) throw new Error("the frame header does not end");
      return null;
    }
    const header = joined.subarray(0, end).toString("latin1");
    this.#keep(joined.subarray(end + HEADER_END.length));
    return header;
  }

  #take(bytes: number): Buffer | null {
    if (this.#pendingBytes < bytes) return null;
    const joined = this.#join();
    this.#keep(joined.subarray(bytes));
    return joined.subarray(0, bytes);
  }

  #join(): Buffer {
    const joined = this.#pending.length === 1 ? this.#pending[0] : undefined;
    return joined ?? Buffer.concat(this.#pending);
  }

  #keep(rest: Buffer): void {
    this.#pending = rest.length === 0 ? [] : [rest];
    this.#pendingBytes = rest.length;
  }
}

function parseContentLength(header: string): number {
  const match = /^content-length:[ \t]*(\d{1,10})[ \t]*$/im.exec(header);
  const bytes = match?.[1] === undefined ? Number.NaN : Number(match[1]);
  if (!(bytes >= 0 && bytes <= MAX_FRAME_BYTES)) throw new Error("the frame header has no usable Content-Length");
  return bytes;
}
