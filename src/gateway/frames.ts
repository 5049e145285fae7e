/** One message as it came: header and body, and the body alone. Both share the memory they arrived in. */
export interface Frame {
  raw: Buffer;
  body: Buffer;
}

/** What arrived is not the protocol; the stream is beyond repair, and its connection is closed. */
export class ProtocolError extends Error {
  override readonly name = "ProtocolError";
  /** The code of JSON-RPC 2.0 for it. */
  readonly rpcCode: number;

  constructor(message: string, rpcCode: number) {
    super(message);
    this.rpcCode = rpcCode;
  }
}

const MAX_HEADER_BYTES = 1024;
const HEADER_END = Buffer.from("\r\n\r\n");
const LENGTH = /^content-length: ?(\d{1,10})$/i;
const TYPE = /^content-type: ?[\x20-\x7e]{1,200}$/i;
const PARSE_ERROR = -32700;

/** A message with its header, in one buffer and so in one write. */
export function encodeBody(body: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`Content-Length: ${body.length}\r\n\r\n`), body]);
}

/**
 * Cuts a byte stream into whole frames without looking into them. What is not whole yet is kept, up to the limit: a frame
 * that says to be longer is refused at its header, before its bytes come.
 */
export class FrameSplitter {
  /** The longest body that is taken, in bytes. */
  limitBytes: number;
  #pending: Buffer[] = [];
  #pendingBytes = 0;
  /** Of the frame that is arriving, once its header is there. */
  #headerBytes = 0;
  #frameBytes: number | null = null;

  constructor(limitBytes: number) {
    this.limitBytes = limitBytes;
  }

  /** Whether a frame has begun to arrive and is not whole yet. */
  get incomplete(): boolean {
    return this.#pendingBytes > 0;
  }

  /** @throws ProtocolError */
  push(chunk: Buffer): Frame[] {
    this.#pending.push(chunk);
    this.#pendingBytes += chunk.length;
    const frames: Frame[] = [];
    for (;;) {
      if (this.#frameBytes === null && !this.#readHeader()) return frames;
      const frameBytes = this.#frameBytes ?? 0;
      if (this.#pendingBytes < frameBytes) return frames;
      const joined = this.#join();
      frames.push({ raw: joined.subarray(0, frameBytes), body: joined.subarray(this.#headerBytes, frameBytes) });
      this.#keep(joined.subarray(frameBytes));
      this.#frameBytes = null;
    }
  }

  #readHeader(): boolean {
    if (this.#pendingBytes === 0) return false;
    const joined = this.#join();
    const end = joined.indexOf(HEADER_END);
    if (end > MAX_HEADER_BYTES || (end === -1 && joined.length > MAX_HEADER_BYTES)) {
      throw new ProtocolError("The header of a frame does not end.", PARSE_ERROR);
    }
    if (end === -1) return false;
    const bodyBytes = contentLength(joined.toString("latin1", 0, end));
    if (bodyBytes > this.limitBytes) {
      throw new ProtocolError(`A frame of ${bodyBytes} bytes: at most ${this.limitBytes} are allowed.`, PARSE_ERROR);
    }
    this.#headerBytes = end + HEADER_END.length;
    this.#frameBytes = this.#headerBytes + bodyBytes;
    return true;
  }

  #join(): Buffer {
    const only = this.#pending.length === 1 ? this.#pending[0] : undefined;
    const joined = only ?? Buffer.concat(this.#pending);
    this.#pending = [joined];
    return joined;
  }

  #keep(rest: Buffer): void {
    this.#pending = rest.length === 0 ? [] : [rest];
    this.#pendingBytes = rest.length;
  }
}

/** Strict, so that no two readers of one header can find different lengths in it. */
function contentLength(header: string): number {
  let found: number | null = null;
  for (const line of header.split("\r\n")) {
    const digits = LENGTH.exec(line)?.[1];
    if (digits !== undefined && found === null) found = Number(digits);
    else if (digits !== undefined || !TYPE.test(line)) {
      throw new ProtocolError("The header of a frame is not one Content-Length.", PARSE_ERROR);
    }
  }
  if (found === null) throw new ProtocolError("The header of a frame has no Content-Length.", PARSE_ERROR);
  return found;
}
