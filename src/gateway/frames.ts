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
const USUAL = "Content-Length: ";
const MAX_DIGITS = 10;
const LENGTH = /^content-length: ?(\d{1,10})$/i;
const TYPE = /^content-type: ?[\x20-\x7e]{1,200}$/i;
/** The code of JSON-RPC 2.0 for what is not JSON, or no frame. */
export const PARSE_ERROR = -32700;

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
  #arrived = 0;

  constructor(limitBytes: number) {
    this.limitBytes = limitBytes;
  }

  /** Whether a frame has begun to arrive and is not whole yet. */
  get incomplete(): boolean {
    return this.#pendingBytes > 0;
  }

  /** How long the frame is that is arriving, in bytes; null while its header is not whole. */
  get frameBytes(): number | null {
    return this.#frameBytes;
  }

  /** How many bytes of a frame that is not whole are kept. */
  get pendingBytes(): number {
    return this.#pendingBytes;
  }

  /** How many frames have arrived. */
  get arrived(): number {
    return this.#arrived;
  }

  /** @throws ProtocolError */
  push(chunk: Buffer): Frame[] {
    this.#pending.push(chunk);
    this.#pendingBytes += chunk.length;
    if (this.#frameBytes !== null && this.#pendingBytes < this.#frameBytes) return [];
    const joined = this.#join();
    const frames: Frame[] = [];
    let at = 0;
    for (;;) {
      this.#frameBytes ??= this.#readHeader(joined, at);
      if (this.#frameBytes === null || joined.length - at < this.#frameBytes) break;
      const end = at + this.#frameBytes;
      frames.push({ raw: joined.subarray(at, end), body: joined.subarray(at + this.#headerBytes, end) });
      at = end;
      this.#frameBytes = null;
      this.#arrived++;
    }
    this.#keep(at === 0 ? joined : joined.subarray(at));
    return frames;
  }

  /** @returns how long the frame that begins at `from` is, header and body; null while its header is not whole. */
  #readHeader(joined: Buffer, from: number): number | null {
    if (from === joined.length) return null;
    const end = joined.indexOf(HEADER_END, from);
    const headerBytes = (end === -1 ? joined.length : end) - from;
    if (headerBytes > MAX_HEADER_BYTES) throw new ProtocolError("The header of a frame does not end.", PARSE_ERROR);
    if (end === -1) return null;
    const header = joined.toString("latin1", from, end);
    const bodyBytes = usualLength(header) ?? contentLength(header);
    if (bodyBytes > this.limitBytes) {
      throw new ProtocolError(`A frame of ${bodyBytes} bytes: at most ${this.limitBytes} are allowed.`, PARSE_ERROR);
    }
    this.#headerBytes = headerBytes + HEADER_END.length;
    return this.#headerBytes + bodyBytes;
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

/** Nearly every header is this one line, and a reader that expects it is several times as fast. */
function usualLength(header: string): number | null {
  const digits = header.length - USUAL.length;
  if (digits < 1 || digits > MAX_DIGITS || !header.startsWith(USUAL)) return null;
  let length = 0;
  for (let at = USUAL.length; at < header.length; at++) {
    const digit = header.charCodeAt(at) - 0x30;
    if (digit < 0 || digit > 9) return null;
    length = length * 10 + digit;
  }
  return length;
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
