import type { Socket } from "node:net";

/* The runtime's frames: JSON-RPC 2.0 messages after a `Content-Length` header, as in the Language Server Protocol. */

/** One message as it arrived: `raw` is header and body, `body` only the body. */
export interface Frame {
  raw: Buffer;
  body: Buffer;
}

/** The received bytes break the protocol, so the connection has to be closed. */
export class ProtocolError extends Error {
  override readonly name = "ProtocolError";
  readonly rpcCode: number;

  constructor(message: string, rpcCode: number) {
    super(message);
    this.rpcCode = rpcCode;
  }
}

const MAX_HEADER_BYTES = 1024;
const HEADER_END = Buffer.from("\r\n\r\n");
const USUAL = Buffer.from("Content-Length: ");
const MAX_DIGITS = 10;
const ZERO = 0x30;
const LENGTH = /^content-length: ?(\d{1,10})$/i;
const TYPE = /^content-type: ?[\x20-\x7e]{1,200}$/i;
/** JSON-RPC 2.0's code for text that is not JSON. Also used for bytes that are not a frame. */
export const PARSE_ERROR = -32700;

/** A message with its header, in one buffer, because Nagle's algorithm would delay a second write. */
export function encodeBody(body: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`Content-Length: ${body.length}\r\n\r\n`), body]);
}

export function encodeMessage(message: object): Buffer {
  return encodeBody(Buffer.from(JSON.stringify({ jsonrpc: "2.0", ...message })));
}

/**
 * Cuts a byte stream into frames without reading their bodies. Refuses a frame over the limit as soon as its header has
 * arrived.
 */
export class FrameSplitter {
  limitBytes: number;
  #pending: Buffer[] = [];
  #pendingBytes = 0;
  /**
   * The length of the arriving frame's header (`#headerBytes`), and of header and body together (`#frameBytes`), in
   * bytes. Both are valid once the header is complete.
   */
  #headerBytes = 0;
  #frameBytes: number | null = null;
  #arrived = 0;

  constructor(limitBytes: number) {
    this.limitBytes = limitBytes;
  }

  get incomplete(): boolean {
    return this.#pendingBytes > 0;
  }

  /** Null until the header of the arriving frame is complete. */
  get frameBytes(): number | null {
    return this.#frameBytes;
  }

  get pendingBytes(): number {
    return this.#pendingBytes;
  }

  get arrived(): number {
    return this.#arrived;
  }

  /** @throws ProtocolError when a header is not valid, or when it announces a body over the limit. */
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

  /** @returns the length of the frame at `from`, header and body, in bytes; null until its header is complete */
  #readHeader(joined: Buffer, from: number): number | null {
    if (from === joined.length) return null;
    return this.#readUsualHeader(joined, from) ?? this.#readAnyHeader(joined, from);
  }

  /**
   * Reads a header that is only the line with the length, as nearly every header is. A turn has dozens of frames, and
   * reading this line byte by byte is many times as fast as `#readAnyHeader`. Null for any other or incomplete header.
   */
  #readUsualHeader(joined: Buffer, from: number): number | null {
    for (let at = 0; at < USUAL.length; at++) if (joined[from + at] !== USUAL[at]) return null;
    let at = from + USUAL.length;
    let bodyBytes = 0;
    for (let byte = joined[at]; isDigit(byte); byte = joined[++at]) bodyBytes = bodyBytes * 10 + byte - ZERO;
    const digits = at - from - USUAL.length;
    if (digits < 1 || digits > MAX_DIGITS) return null;
    for (const byte of HEADER_END) if (joined[at++] !== byte) return null;
    return this.#accept(at - from, bodyBytes);
  }

  #readAnyHeader(joined: Buffer, from: number): number | null {
    const end = joined.indexOf(HEADER_END, from);
    const headerBytes = (end === -1 ? joined.length : end) - from;
    if (headerBytes > MAX_HEADER_BYTES) throw new ProtocolError("The header of a frame does not end.", PARSE_ERROR);
    if (end === -1) return null;
    return this.#accept(headerBytes + HEADER_END.length, contentLength(joined.toString("latin1", from, end)));
  }

  #accept(headerBytes: number, bodyBytes: number): number {
    if (bodyBytes > this.limitBytes) {
      throw new ProtocolError(`A frame has ${bodyBytes} bytes. At most ${this.limitBytes} are allowed.`, PARSE_ERROR);
    }
    this.#headerBytes = headerBytes;
    return headerBytes + bodyBytes;
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

function isDigit(byte: number | undefined): byte is number {
  return byte !== undefined && byte >= ZERO && byte <= ZERO + 9;
}

/** Reads the length strictly, so that no other reader can find a different length in the same header. */
function contentLength(header: string): number {
  let found: number | null = null;
  for (const line of header.split("\r\n")) {
    const digits = LENGTH.exec(line)?.[1];
    if (digits !== undefined && found === null) found = Number(digits);
    else if (digits !== undefined || !TYPE.test(line)) {
      throw new ProtocolError(
        "The header of a frame contains a second Content-Length, or an unknown field.",
        PARSE_ERROR,
      );
    }
  }
  if (found === null) throw new ProtocolError("The header of a frame has no Content-Length.", PARSE_ERROR);
  return found;
}

/** Both sides ignore notifications whose method begins with `$/` (Language Server Protocol, "$ requests"). */
export const ACKNOWLEDGE = "$/ack";
export const ACKNOWLEDGEMENT = encodeMessage({ method: ACKNOWLEDGE });

/**
 * Avoids Nagle's delay in what a server sends that has no TCP_NODELAY. The runtime writes header and body separately.
 * So the body waits until our kernel acknowledges the header, which the kernel delays by about 40 ms.
 *
 * This function answers each chunk that arrives with a notification, because the packet of the notification carries the
 * TCP acknowledgement at once. It sends no notification while the send buffer is not empty.
 *
 * @param isWanted whether to acknowledge the chunk that has just arrived. Default: always.
 */
export function acknowledgePromptly(socket: Socket, isWanted?: () => boolean): void {
  socket.on("data", () => {
    if (isWanted?.() !== false && socket.writable && socket.writableLength === 0) socket.write(ACKNOWLEDGEMENT);
  });
}
