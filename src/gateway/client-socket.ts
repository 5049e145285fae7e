import type { Socket } from "node:net";
import { type Frame, FrameSplitter, type ProtocolError } from "./frames.js";
import { readProxyHeader } from "./proxy-protocol.js";
import { encodeMessage } from "./refusals.js";

/** Notifications whose method begins with `$/` are nobody's business in this protocol (LSP, "$ requests"). */
const ACKNOWLEDGEMENT = encodeMessage({ method: "$/ack" });

/** How long a client may take to go on with taking what it was sent, in milliseconds. */
const STALL_MS = 60_000;
/** How long a whole frame may take to arrive: so many milliseconds, and one more for each of so many bytes (64 kB/s). */
const FRAME_MS = 30_000;
const FRAME_BYTES_PER_MS = 64;
const KEEP_ALIVE_MS = 30_000;
/** How long one that is hung up on may take for the last word, in milliseconds. */
const END_MS = 1_000;
/** A client that does not take so much of what it was sent is not read from: each answer to it would add to that. */
const MAX_UNREAD_BYTES = 8 * 1024 * 1024;

export interface ClientSocketOptions {
  /** After how long a client is cut off that takes nothing of what it was sent, in milliseconds. */
  stallMs?: number;
  /** Whether the connection begins with the header of a proxy: see {@link readProxyHeader}. */
  proxyProtocol?: boolean;
}

export interface ClientSocketListener {
  onFrames(frames: readonly Frame[]): void;
  onProtocolError(error: unknown): void;
  /** The buffers hold so many bytes now: of a frame that is not whole, and of what the client does not take. */
  onBuffered(bytes: number, of: { arriving: number }): void;
  /** It is slower than what is sent to it. */
  onFull(): void;
  /** It takes more again. */
  onDrain(): void;
  onClosed(): void;
}

/**
 * The client's end of the wire: frames in, frames out, and no patience with one that stalls. An idle client may stay for
 * ever; one whose machine is gone is found by TCP's own keep-alive.
 */
export class ClientSocket {
  /** The client's address, without its port. Until a proxy has named it, the proxy's. */
  address: string;
  readonly #socket: Socket;
  readonly #splitter: FrameSplitter;
  readonly #listener: ClientSocketListener;
  readonly #stallMs: number;
  /** Who wants nothing more to arrive for now. */
  readonly #holds = new Set<unknown>();
  /** What is to leave together. */
  #batch: Run[] | null = null;
  /** The beginning of the header of a proxy; null once that is whole, or if none is expected. */
  #proxyHeader: Buffer | null;
  #arriving: ArrivingFrame | null = null;
  #frameTimer: NodeJS.Timeout | undefined;
  /** How many bytes of an unfinished frame were counted last. */
  #toldPending = 0;
  #ending: NodeJS.Timeout | undefined;

  /** @param limitBytes of one frame */
  constructor(
    socket: Socket,
    limitBytes: number,
    listener: ClientSocketListener,
    { stallMs = STALL_MS, proxyProtocol = false }: ClientSocketOptions = {},
  ) {
    this.#socket = socket;
    this.#stallMs = stallMs;
    this.#proxyHeader = proxyProtocol ? Buffer.alloc(0) : null;
    this.#listener = listener;
    this.#splitter = new FrameSplitter(limitBytes);
    this.address = socket.remoteAddress ?? "unknown";
    socket.setNoDelay(true);
    socket.setKeepAlive(true, KEEP_ALIVE_MS);
    socket.on("data", (chunk) => this.#receive(chunk, listener));
    socket.on("drain", () => {
      socket.setTimeout(0);
      this.#tellBuffered();
      this.letGo(this);
      listener.onDrain();
    });
    socket.on("timeout", () => socket.destroy());
    socket.on("error", () => undefined); // `close` follows, and says all there is to say
    socket.once("close", () => {
      clearTimeout(this.#frameTimer);
      clearTimeout(this.#ending);
      listener.onClosed();
    });
  }

  get closed(): boolean {
    return this.#socket.destroyed || !this.#socket.writable;
  }

  /** The longest frame that is taken from now on, in bytes. */
  set limitBytes(bytes: number) {
    this.#splitter.limitBytes = bytes;
  }

  send(frame: Buffer): void {
    if (this.#batch !== null) append(this.#batch, frame);
    else this.#write(frame);
  }

  #write(bytes: Buffer): void {
    if (this.closed || this.#socket.write(bytes)) return;
    // Each piece that it takes counts, also of one long frame: a slow client is none that stalls.
    this.#socket.setTimeout(this.#stallMs);
    this.#tellBuffered();
    if (this.#socket.writableLength > MAX_UNREAD_BYTES) this.hold(this);
    this.#listener.onFull();
  }

  /** Frames that are sent in between leave together. */
  cork(): void {
    this.#batch ??= [];
  }

  uncork(): void {
    const batch = this.#batch ?? [];
    this.#batch = null;
    this.#socket.cork();
    for (const { first, bytes } of batch) {
      this.#write(bytes === first.length ? first : Buffer.from(first.buffer, first.byteOffset, bytes));
    }
    this.#socket.uncork();
  }

  /** Reads nothing more until `letGo` with the same reason. */
  hold(reason: unknown): void {
    const isRead = this.#holds.size === 0;
    this.#holds.add(reason);
    this.#socket.pause();
    if (!isRead || this.#arriving === null) return;
    // The time in which the door does not read is not the client's fault.
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
   * Says the last word and hangs up. Whoever does not take it within the time is cut off, and so is whoever goes on talking:
   * nothing of that is looked at, and it gains no time by it.
   */
  end(frame?: Buffer): void {
    if (this.#ending !== undefined) return;
    if (frame !== undefined) this.send(frame);
    this.#socket.end();
    this.#ending = this.#cutOffIn(END_MS);
  }

  destroy(): void {
    this.#socket.destroy();
  }

  #receive(chunk: Buffer, listener: ClientSocketListener): void {
    // Read all the same: with bytes unread the kernel would take the last word back.
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
    this.#listener.onBuffered(pendingBytes + this.#socket.writableLength, { arriving: pendingBytes });
  }

  /** @returns what the client sent; null while the header is not whole. @throws ProtocolError */
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
   * Clients write header and body apart, and without TCP_NODELAY the body then waits for the header's acknowledgement, which
   * the kernel delays by about 40 ms. Sending anything carries it at once. See `runtime/client/acknowledge.ts`.
   */
  #watchArrival(): void {
    this.#timeFrame();
    if (!this.#splitter.incomplete) return;
    if (this.#socket.writable && this.#socket.writableLength === 0) this.#socket.write(ACKNOWLEDGEMENT);
  }

  /** Sets the time for the whole frame that is arriving. Bytes of it that arrive later gain the client no time. */
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

/** A frame that is not whole. */
interface ArrivingFrame {
  /** How many frames came before it. */
  number: number;
  /** Its length; null while its header is not whole. */
  bytes: number | null;
  /** For how long the door read from the client before `since`, in milliseconds. */
  readMs: number;
  /** When the door began to read, by `performance.now()`. */
  since: number;
}

/** Frames that lie one behind the other in memory, as they arrived: they leave as one piece, not as one each. */
interface Run {
  first: Buffer;
  /** Of all of them. */
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
