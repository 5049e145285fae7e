import type { Socket } from "node:net";
import { FleetError } from "../errors.js";
import type { Attempts } from "./attempts.js";
import { Client, type DoorServices } from "./client.js";
import { type ClientMessage, type ClientRequest, type Params, readClientFrame } from "./client-message.js";
import { ClientSocket } from "./client-socket.js";
import type { DoorEvent } from "./context.js";
import { type Frame, ProtocolError } from "./frames.js";
import { AUTHENTICATION_FAILED, AUTHENTICATION_REQUIRED, encodeMessage, errorFrame, refusalFrame } from "./refusals.js";
import { type TokenHolder, verifyToken } from "./tokens.js";

/** What somebody may send who has shown no token yet: enough for `connect`. */
const HELLO_BYTES = 16 * 1024;
/** How long somebody may take to show a token, in milliseconds. */
const HELLO_MS = 10_000;

export interface ConnectionServices extends DoorServices {
  attempts: Attempts;
}

/** One connection to the front door: nobody's until a token was shown, then a client's. */
export class Connection {
  readonly address: string;
  readonly #services: ConnectionServices;
  readonly #socket: ClientSocket;
  readonly #onClosed: (connection: Connection) => void;
  readonly #hello: NodeJS.Timeout;
  /** What came behind `connect` before that was answered. */
  readonly #early: ClientMessage[] = [];
  #state: "new" | "authenticating" | "open" | "closed" = "new";
  #client: Client | undefined;

  constructor(socket: Socket, services: ConnectionServices, onClosed: (connection: Connection) => void) {
    this.#services = services;
    this.#onClosed = onClosed;
    this.#socket = new ClientSocket(socket, HELLO_BYTES, {
      onFrames: (frames) => this.#takeAll(frames),
      onProtocolError: (error) => this.#fault(error),
      onFull: () => this.#client?.setFlow(false),
      onDrain: () => this.#client?.setFlow(true),
      onClosed: () => this.#close(),
    });
    this.address = this.#socket.address;
    this.#hello = setTimeout(() => this.#socket.destroy(), HELLO_MS);
    this.#hello.unref();
    // Whoever guesses is not even listened to.
    if (services.attempts.waitMs(this.address) > 0) {
      this.#state = "closed";
      this.#tell({ event: "attempts-limited" });
      this.#socket.end(refusalFrame(null, tooManyAttempts()));
    }
  }

  /** Whose it is; undefined until a token was shown. */
  get client(): Client | undefined {
    return this.#client;
  }

  get authenticated(): boolean {
    return this.#state === "open";
  }

  /** Ends the connection, after what was already sent to the client has left. */
  end(): void {
    this.#socket.end();
  }

  destroy(): void {
    this.#socket.destroy();
  }

  #takeAll(frames: readonly Frame[]): void {
    for (const { body } of frames) {
      if (this.#state === "closed") return;
      try {
        this.#take(readClientFrame(body));
      } catch (error) {
        this.#fault(error);
        return;
      }
    }
  }

  #take(message: ClientMessage): void {
    switch (this.#state) {
      case "open":
        this.#client?.take(message);
        break;
      case "authenticating":
        this.#early.push(message);
        break;
      case "new":
        if (message.kind === "notification" && message.method.startsWith("$/")) break;
        if (message.kind !== "request" || message.method !== "connect") {
          const id = message.kind === "request" ? message.id : null;
          this.#socket.end(errorFrame(id, AUTHENTICATION_REQUIRED, "AUTHENTICATION_REQUIRED"));
          this.#state = "closed";
          break;
        }
        this.#state = "authenticating";
        this.#socket.hold(this);
        void this.#authenticate(message);
        break;
    }
  }

  /** Never rejects. */
  async #authenticate({ id, params }: ClientRequest): Promise<void> {
    const { token, ...hello } = params;
    try {
      const holder = await verifyToken(this.#services.store, token);
      if (holder === null) {
        this.#services.attempts.failed(this.address);
        this.#tell({ event: "token-refused", code: "FLEET_TOKEN_REFUSED" });
        this.#refuse(errorFrame(id, AUTHENTICATION_FAILED, "AUTHENTICATION_FAILED"));
        return;
      }
      await this.#admit(id, holder, hello);
    } catch (error) {
      this.#tell({ event: "failed", detail: error instanceof Error ? error.message : String(error) });
      this.#refuse(refusalFrame(id, error));
    }
  }

  async #admit(id: ClientRequest["id"], holder: TokenHolder, hello: Params): Promise<void> {
    if (this.#state === "closed") return;
    clearTimeout(this.#hello);
    this.#client = new Client(this.#services, this.#socket, holder, hello);
    const greeting = await this.#client.greet();
    if (this.#socket.closed) return;
    this.#state = "open";
    this.#socket.limitBytes = this.#services.config.serve.maxFrameBytes;
    this.#socket.send(encodeMessage({ id, result: greeting }));
    this.#tell({ event: "connected" });
    for (const message of this.#early.splice(0)) this.#client.take(message);
    this.#socket.letGo(this);
  }

  #refuse(frame: Buffer): void {
    this.#state = "closed";
    this.#socket.letGo(this); // or its end would not be seen
    this.#socket.end(frame);
  }

  /** What came is not the protocol: this connection ends, and no other notices. */
  #fault(error: unknown): void {
    const fault = error instanceof ProtocolError ? error : new ProtocolError("A frame cannot be read.", -32700);
    this.#tell({ event: "protocol-error", detail: fault.message });
    this.#state = "closed";
    this.#client?.close();
    this.#socket.end(errorFrame(null, fault.rpcCode, fault.message));
  }

  #close(): void {
    clearTimeout(this.#hello);
    this.#state = "closed";
    this.#client?.close();
    this.#tell({ event: "closed" });
    this.#onClosed(this);
  }

  #tell(event: Omit<DoorEvent, "address" | "user">): void {
    const user = this.#client?.holder.user;
    this.#services.onEvent({ ...event, address: this.address, ...(user === undefined ? {} : { user }) });
  }
}

function tooManyAttempts(): FleetError {
  return new FleetError("FLEET_TOKEN_REFUSED", "Too many wrong tokens came from this address. Try again in a minute.");
}
