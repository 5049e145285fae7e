import type { Socket } from "node:net";
import { type Frame, FrameSplitter, type ProtocolError } from "./frames.js";
import { encodeMessage } from "./refusals.js";

/** Notifications whose method begins with `$/` are nobody's business in this protocol (LSP, "$ requests"). */
const ACKNOWLEDGEMENT = encodeMessage({ method: "$/ack" });

/** How long a client may take to go on with a frame that it began, or to take what it was sent, in milliseconds. */
const STALL_MS = 60_000;
const KEEP_ALIVE_MS = 30_000;

export interface ClientSocketListener {
  onFrames(frames: readonly Frame[]): void;
  onProtocolError(error: unknown): void;
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
  readonly address: string;
  readonly #socket: Socket;
  readonly #splitter: FrameSplitter;
  readonly #listener: ClientSocketListener;
  /** Who wants nothing more to arrive for now. */
  readonly #holds = new Set<unknown>();
  /** What is to leave together. */
  #batch: Buffer[] | null = null;
  #stalledIn: NodeJS.Timeout | undefined;
  #stalledOut: NodeJS.Timeout | undefined;

  constructor(socket: Socket, limitBytes: number, listener: ClientSocketListener) {
    this.#socket = socket;
    this.#listener = listener;
    this.#splitter = new FrameSplitter(limitBytes);
    this.address = socket.remoteAddress ?? "unknown";
    socket.setNoDelay(true);
    socket.setKeepAlive(true, KEEP_ALIVE_MS);
    socket.on("data", (chunk) => this.#receive(chunk, listener));
    socket.on("drain", () => {
      clearTimeout(this.#stalledOut);
      this.#stalledOut = undefined;
      listener.onDrain();
    });
    socket.on("error", () => undefined); // `close` follows, and says all there is to say
    socket.once("close", () => {
      clearTimeout(this.#stalledIn);
      clearTimeout(this.#stalledOut);
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
    this.#stalledOut ??= this.#stall();
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
    for (const bytes of batch) this.#write(bytes);
    this.#socket.uncork();
  }

  /** Reads nothing more until `letGo` with the same reason. */
  hold(reason: unknown): void {
    this.#holds.add(reason);
    this.#socket.pause();
  }

  letGo(reason: unknown): void {
    if (this.#holds.delete(reason) && this.#holds.size === 0) this.#socket.resume();
  }

  /** Says the last word and hangs up. Whoever does not take it within the time is cut off. */
  end(frame?: Buffer): void {
    if (frame !== undefined) this.send(frame);
    this.#socket.end();
    this.#stalledOut ??= this.#stall(1_000);
  }

  destroy(): void {
    this.#socket.destroy();
  }

  #receive(chunk: Buffer, listener: ClientSocketListener): void {
    let frames: Frame[];
    try {
      frames = this.#splitter.push(chunk);
    } catch (error) {
      listener.onProtocolError(error as ProtocolError);
      return;
    }
    this.#watchArrival();
    if (frames.length > 0) listener.onFrames(frames);
  }

  /**
   * Clients write header and body apart, and without TCP_NODELAY the body then waits for the header's acknowledgement, which
   * the kernel delays by about 40 ms. Sending anything carries it at once. See `runtime/client/acknowledge.ts`.
   */
  #watchArrival(): void {
    clearTimeout(this.#stalledIn);
    this.#stalledIn = undefined;
    if (!this.#splitter.incomplete) return;
    this.#stalledIn = this.#stall();
    if (this.#socket.writable && this.#socket.writableLength === 0) this.#socket.write(ACKNOWLEDGEMENT);
  }

  #stall(ms = STALL_MS): NodeJS.Timeout {
    const timer = setTimeout(() => this.#socket.destroy(), ms);
    timer.unref();
    return timer;
  }
}

/** Frames that arrived one behind the other leave as one piece of memory, not as one each. */
function append(batch: Buffer[], frame: Buffer): void {
  const last = batch.at(-1);
  if (last?.buffer === frame.buffer && last.byteOffset + last.length === frame.byteOffset) {
    batch[batch.length - 1] = Buffer.from(last.buffer, last.byteOffset, last.length + frame.length);
  } else {
    batch.push(frame);
  }
}
