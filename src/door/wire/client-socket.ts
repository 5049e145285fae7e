import type { Socket } from "node:net";
import { ACKNOWLEDGEMENT, type Frame, FrameSplitter, PARSE_ERROR, ProtocolError } from "../../runtime/wire/frames.js";

const STALL_MS = 60_000;
/**
 * How long a whole frame may take to arrive: this many milliseconds, plus one millisecond for every 64 bytes of the
 * frame (64 kB/s).
 */
const FRAME_MS = 30_000;
const FRAME_BYTES_PER_MS = 64;
const KEEP_ALIVE_MS = 30_000;
/** How long a client may take to read the last frame before the door cuts it off, in milliseconds. */
const END_MS = 1_000;
/**
 * While more bytes than this wait for a client to read them, the door does not read further requests of the client,
 * because their answers would add to these bytes.
 */
const MAX_UNREAD_BYTES = 8 * 1024 * 1024;

/** How long a frame may wait for others, so that one write sends them together. In milliseconds. */
const HOLD_MS = 3;

/** If the frames of one write together are shorter than this, they are copied into one buffer. In bytes. */
const COPIED_BYTES = 64 * 1024;

export interface ClientSocketOptions {
  /** If a client with unread data reads nothing for this long, the door cuts it off. In milliseconds. */
  stallMs?: number;
  /** Whether the connection begins with a proxy's header: see {@link readProxyHeader}. */
  proxyProtocol?: boolean;
  /** The client's address, without its port, if the socket does not know it. */
  address?: string;
}

interface ClientSocketListener {
  onFrames(frames: readonly Frame[]): void;
  onProtocolError(error: unknown): void;
  /**
   * The buffers now hold `bytes` bytes. `arriving` of them belong to an unfinished frame of the client. The rest is
   * output that the client has not read.
   */
  onBuffered(bytes: number, of: { arriving: number }): void;
  /** The client reads more slowly than the door sends. */
  onFull(): void;
  /** Everything that waited for the client has been sent. */
  onDrain(): void;
  onClosed(): void;
}

/**
 * The socket of one client: receives and sends frames, and cuts off a client that stalls. An idle client may stay for
 * ever. TCP keep-alive detects a client whose machine has gone.
 */
export class ClientSocket {
  /**
   * The client's address, without its port. Until a proxy's header has named the client, this is the proxy's address.
   */
  address: string;
  readonly #socket: Socket;
  readonly #splitter: FrameSplitter;
  #listener: ClientSocketListener | undefined;
  readonly #stallMs: number;
  /** The reasons not to read from the client now. The door reads again when all reasons are gone. */
  readonly #holds = new Set<unknown>();
  /** The frames that the next `#flush` sends together. */
  #batch: Run[] = [];
  /** Whether a `#flush` follows right after the current callback (`process.nextTick`). */
  #isFlushing = false;
  /** Set while pieces of replies wait for others. */
  #held: NodeJS.Timeout | undefined;
  /** When a piece of a reply was sent last, by `performance.now()`. */
  #pieceAt = Number.NEGATIVE_INFINITY;
  /** The bytes of a proxy's header that have arrived. Null if the header is complete or none is expected. */
  #proxyHeader: Buffer | null;
  #arriving: ArrivingFrame | null = null;
  #frameTimer: NodeJS.Timeout | undefined;
  /** How many bytes of an unfinished frame the last `onBuffered` reported. */
  #toldPending = 0;
  #ending: NodeJS.Timeout | undefined;

  /** @param limitBytes the longest body of a frame, in bytes */
  constructor(
    socket: Socket,
    limitBytes: number,
    { stallMs = STALL_MS, proxyProtocol = false, address = socket.remoteAddress }: ClientSocketOptions = {},
  ) {
    this.#socket = socket;
    this.#stallMs = stallMs;
    this.#proxyHeader = proxyProtocol ? Buffer.alloc(0) : null;
    this.#splitter = new FrameSplitter(limitBytes);
    this.address = address ?? "unknown";
    socket.setNoDelay(true);
    socket.setKeepAlive(true, KEEP_ALIVE_MS);
    socket.on("timeout", () => socket.destroy());
    socket.on("error", () => undefined); // `close` follows, and we handle that
  }

  /** Begins to read. Call this once, in the same round of the event loop in which the socket was made. */
  listen(listener: ClientSocketListener): void {
    const socket = this.#socket;
    this.#listener = listener;
    socket.on("data", (chunk) => this.#receive(chunk, listener));
    socket.on("drain", () => {
      socket.setTimeout(0);
      this.#tellBuffered();
      this.letGo(this);
      listener.onDrain();
    });
    socket.once("close", () => {
      clearTimeout(this.#frameTimer);
      clearTimeout(this.#ending);
      clearTimeout(this.#held);
      listener.onClosed();
    });
  }

  get closed(): boolean {
    return this.#socket.destroyed || !this.#socket.writable;
  }

  /** The longest body of a frame that is accepted from now on, in bytes. */
  set limitBytes(bytes: number) {
    this.#splitter.limitBytes = bytes;
  }

  /** Sends a frame right after the current callback, in one write with the other frames that wait. */
  send(frame: Buffer): void {
    append(this.#batch, frame);
    if (this.#isFlushing) return;
    this.#isFlushing = true;
    process.nextTick(() => this.#flush());
  }

  /**
   * Like {@link send}, for a piece of a reply. The first piece is sent at once. A piece that follows within `HOLD_MS`
   * waits until that time is over, or until `send` is called.
   */
  sendPiece(frame: Buffer): void {
    const now = performance.now();
    const waitMs = this.#pieceAt + HOLD_MS - now;
    if (waitMs <= 0) {
      this.#pieceAt = now;
      this.send(frame);
      return;
    }
    append(this.#batch, frame);
    if (!this.#isFlushing) this.#held ??= setTimeout(() => this.#flush(), waitMs);
  }

  #flush(): void {
    this.#isFlushing = false;
    if (this.#held !== undefined) {
      clearTimeout(this.#held);
      this.#held = undefined;
      this.#pieceAt = performance.now();
    }
    const batch = this.#batch;
    this.#batch = [];
    const runs = batch.map(({ first, bytes }) =>
      bytes === first.length ? first : Buffer.from(first.buffer, first.byteOffset, bytes),
    );
    // Copying some kilobytes costs less than a write of several buffers.
    const isShort = batch.reduce((sum, { bytes }) => sum + bytes, 0) < COPIED_BYTES;
    const writes = isShort && runs.length > 1 ? [Buffer.concat(runs)] : runs;
    if (writes.length > 1) this.#socket.cork();
    for (const bytes of writes) this.#write(bytes);
    if (writes.length > 1) this.#socket.uncork();
  }

  #write(bytes: Buffer): void {
    if (this.closed || this.#socket.write(bytes)) return;
    // The socket restarts this time limit whenever the client reads something, even a part of a frame. So a client that
    // reads slowly stays connected.
    this.#socket.setTimeout(this.#stallMs);
    this.#tellBuffered();
    if (this.#socket.writableLength > MAX_UNREAD_BYTES) this.hold(this);
    this.#listener?.onFull();
  }

  /** Stops reading until `letGo` is called with the same reason. */
  hold(reason: unknown): void {
    const isRead = this.#holds.size === 0;
    this.#holds.add(reason);
    this.#socket.pause();
    if (!isRead || this.#arriving === null) return;
    // Stop the clock for the unfinished frame while the door does not read.
    this.#arriving.readMs += performance.now() - this.#arriving.since;
    clearTimeout(this.#frameTimer);
  }

  letGo(reason: unknown): void {
    if (!this.#holds.delete(reason) || this.#holds.size > 0) return;
    if (this.#arriving !== null) {
      this.#arriving.since = performance.now();
      this.#startFrameTimer(this.#arriving);
    }
    this.#socket.resume();
  }

  /**
   * Sends a last frame and disconnects, at the latest after `END_MS`. Ignores everything that the client still sends.
   */
  end(frame?: Buffer): void {
    if (this.#ending !== undefined) return;
    if (frame !== undefined) this.send(frame);
    this.#flush();
    this.#socket.end();
    this.#ending = this.#cutOffIn(END_MS);
  }

  destroy(): void {
    this.#socket.destroy();
  }

  #receive(chunk: Buffer, listener: ClientSocketListener): void {
    // Keep reading and ignore the bytes. Closing a socket with unread bytes would make the client lose the last frame.
    if (this.#ending !== undefined) return;
    let frames: Frame[];
    try {
      const bytes = this.#behindProxyHeader(chunk);
      if (bytes === null) return;
      frames = this.#splitter.push(bytes);
    } catch (error) {
      listener.onProtocolError(error as ProtocolError);
      return;
    }
    this.#watchArrival();
    if (this.#splitter.pendingBytes !== this.#toldPending) this.#tellBuffered();
    if (frames.length > 0) listener.onFrames(frames);
  }

  #tellBuffered(): void {
    const { pendingBytes } = this.#splitter;
    this.#toldPending = pendingBytes;
    this.#listener?.onBuffered(pendingBytes + this.#socket.writableLength, { arriving: pendingBytes });
  }

  /**
   * Removes a proxy's header, if one is expected. @returns the bytes behind it; null until the header is complete.
   * @throws ProtocolError as {@link readProxyHeader}.
   */
  #behindProxyHeader(chunk: Buffer): Buffer | null {
    if (this.#proxyHeader === null) return chunk;
    const bytes = Buffer.concat([this.#proxyHeader, chunk]);
    const header = readProxyHeader(bytes);
    this.#proxyHeader = header === null ? bytes : null;
    if (header === null) return null;
    this.address = header.address ?? this.address;
    return bytes.subarray(header.length);
  }

  /**
   * Makes the kernel acknowledge an unfinished frame at once, by sending something. Clients without TCP_NODELAY send
   * the body of a frame only after the acknowledgement of its header, which our kernel would delay by about 40 ms. See
   * `runtime/wire/frames.ts`.
   */
  #watchArrival(): void {
    this.#timeFrame();
    if (!this.#splitter.incomplete) return;
    if (this.#socket.writable && this.#socket.writableLength === 0) this.#socket.write(ACKNOWLEDGEMENT);
  }

  /** Sets the time limit for the whole frame that is arriving. Later bytes of the frame do not extend it. */
  #timeFrame(): void {
    const { incomplete, arrived: number, frameBytes: bytes } = this.#splitter;
    const known = this.#arriving;
    if (incomplete && known?.number === number && known.bytes === bytes) return;
    clearTimeout(this.#frameTimer);
    const isSame = incomplete && known?.number === number;
    const since = performance.now();
    this.#arriving = !incomplete ? null : isSame ? { ...known, bytes } : { number, bytes, readMs: 0, since };
    if (this.#arriving !== null && this.#holds.size === 0) this.#startFrameTimer(this.#arriving);
  }

  #startFrameTimer({ bytes, readMs, since }: ArrivingFrame): void {
    const allowedMs = FRAME_MS + (bytes ?? 0) / FRAME_BYTES_PER_MS;
    this.#frameTimer = this.#cutOffIn(Math.max(0, allowedMs - readMs - (performance.now() - since)));
  }

  #cutOffIn(ms: number): NodeJS.Timeout {
    const timer = setTimeout(() => this.#socket.destroy(), ms);
    timer.unref();
    return timer;
  }
}

/** A frame of which only a part has arrived. */
interface ArrivingFrame {
  /** How many frames arrived before it. */
  number: number;
  /** The frame's length, header and body; null until its header is complete. */
  bytes: number | null;
  /** How long the door read the frame before it last stopped reading, in milliseconds. */
  readMs: number;
  /** When the door last began to read the frame, by `performance.now()`. */
  since: number;
}

/** Frames that are adjacent in memory, so that one write can send all of them. */
interface Run {
  first: Buffer;
  /** The length of all these frames together. */
  bytes: number;
}

function append(batch: Run[], frame: Buffer): void {
  const last = batch.at(-1);
  if (last?.first.buffer === frame.buffer && last.first.byteOffset + last.bytes === frame.byteOffset) {
    last.bytes += frame.length;
  } else {
    batch.push({ first: frame, bytes: frame.length });
  }
}

/**
 * The first bytes of a PROXY protocol header, version 2. In this header, a proxy names the client for which it connects
 * (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, section 2.2).
 */
const SIGNATURE = Buffer.from("\r\n\r\n\0\r\nQUIT\n", "latin1");
const FIXED_BYTES = 16;
/** The longest part behind the fixed bytes: the addresses and extra fields. Proxies send a few hundred bytes. */
const MAX_VARIABLE_BYTES = 4 * 1024;
const VERSION = 0x2;
const [LOCAL, PROXY] = [0x0, 0x1];
const [TCP4, TCP6] = [0x11, 0x21];
/** The length of the addresses: source and destination, each with a port of two bytes. */
const [TCP4_BYTES, TCP6_BYTES] = [2 * (4 + 2), 2 * (16 + 2)];

interface ProxyHeader {
  /** The header's length, in bytes. */
  length: number;
  /** The client's address. Null if the proxy connects on its own behalf, for example to check that the port is open. */
  address: string | null;
}

/**
 * Reads the header at the beginning of a connection.
 *
 * @param bytes everything that has arrived
 * @returns null while the header is incomplete.
 * @throws ProtocolError when the bytes do not begin with a valid header, or when the header is for something other than
 * a TCP client or a connection of the proxy itself.
 */
export function readProxyHeader(bytes: Buffer): ProxyHeader | null {
  const known = Math.min(bytes.length, SIGNATURE.length);
  if (bytes.compare(SIGNATURE, 0, known, 0, known) !== 0) {
    throw refused("begins without the header that serve.proxyProtocol requires");
  }
  if (bytes.length < FIXED_BYTES) return null;
  const [versionAndCommand = 0, family = 0] = [bytes[12], bytes[13]];
  const command = versionAndCommand & 0xf;
  if (versionAndCommand >> 4 !== VERSION || (command !== LOCAL && command !== PROXY)) {
    throw refused("has a header of another version or command");
  }
  const variable = bytes.readUInt16BE(14);
  if (variable > MAX_VARIABLE_BYTES) throw refused(`has a header of more than ${MAX_VARIABLE_BYTES} bytes`);
  const length = FIXED_BYTES + variable;
  if (bytes.length < length) return null;
  if (command === LOCAL) return { length, address: null };
  if (family === TCP4 && variable >= TCP4_BYTES) {
    return { length, address: bytes.subarray(FIXED_BYTES, FIXED_BYTES + 4).join(".") };
  }
  if (family === TCP6 && variable >= TCP6_BYTES) return { length, address: ipv6(bytes, FIXED_BYTES) };
  throw refused("has a header for something other than TCP over IPv4 or IPv6");
}

function ipv6(bytes: Buffer, from: number): string {
  const groups = Array.from({ length: 8 }, (_, index) => bytes.readUInt16BE(from + 2 * index).toString(16));
  // The URL parser shortens the address, so that each address appears in the log in one form only.
  return new URL(`http://[${groups.join(":")}]`).hostname.slice(1, -1);
}

function refused(what: string): ProtocolError {
  return new ProtocolError(`The connection ${what} (PROXY protocol v2).`, PARSE_ERROR);
}
