import type { Socket } from "node:net";
import { isFleetError } from "../../errors.js";
import { type HostHolder, recognizer, tokenIdIn, verifyToken } from "../../identity/tokens.js";
import { encodeMessage, type Frame, ProtocolError } from "../../runtime/wire/frames.js";
import { Client } from "../client/client.js";
import { clientProtocol, type Protocol } from "../policy/protocols.js";
import { PeerDialer, relayedFrom } from "../routing/peer-dialer.js";
import type { DoorState } from "../state/door/door-state.js";
import { type ConnectionEvent, describe, failure, Reporter } from "../state/door/report.js";
import type { Share } from "../state/door/shares.js";
import { type ClientMessage, type ClientRequest, type Params, readClientFrame } from "../wire/client-message.js";
import { ClientSocket } from "../wire/client-socket.js";
import { AUTHENTICATION_FAILED, AUTHENTICATION_REQUIRED, errorFrame, refusalFrame } from "../wire/refusals.js";
import type { Attempts } from "./attempts.js";
import { ControlConnection, type HostCalls } from "./control.js";

/** The longest frame that a connection may send before it has shown a token, in bytes. That is enough for `connect`. */
const HELLO_BYTES = 16 * 1024;
/** The limit on unread bytes ends a connection only if its unfinished frame already has more bytes than this. */
const SMALL_BYTES = 64 * 1024;
/** How long a connection may take to show a token, in milliseconds. */
const HELLO_MS = 10_000;

interface Connect {
  id: ClientRequest["id"];
  token: string;
  /** The host whose front door relays the client; undefined if it connected here directly. */
  via: string | undefined;
}

interface Admission {
  isSameToken: (shown: unknown) => boolean;
  greeting: Params;
}

/** One connection to the front door. It is a stranger's until it shows a token, then a client's or another host's. */
export class Connection {
  /** Resolves when the connection has ended. */
  readonly closed: Promise<void>;
  readonly #door: DoorState;
  readonly #attempts: Attempts;
  readonly #calls: HostCalls;
  readonly #socket: ClientSocket;
  readonly #report: Reporter;
  readonly #hello: NodeJS.Timeout;
  /** The messages that arrived behind `connect` before it was answered. */
  readonly #early: ClientMessage[] = [];
  #state: "new" | "authenticating" | "open" | "closed" = "new";
  #client: Client | undefined;
  #admitted: Admission | undefined;
  #share: Share | undefined;
  /** Set instead of the client when another host has connected. */
  #control: ControlConnection | undefined;

  constructor(socket: Socket, door: DoorState, attempts: Attempts, calls: HostCalls) {
    this.#door = door;
    this.#attempts = attempts;
    this.#calls = calls;
    const { proxyProtocol } = door.config.serve;
    this.#socket = new ClientSocket(socket, HELLO_BYTES, { proxyProtocol });
    this.#report = new Reporter(door.listeners, this.#socket);
    this.closed = new Promise((resolve) => {
      this.#socket.listen({
        onFrames: (frames) => this.#takeAll(frames),
        onProtocolError: (error) => this.#fault(error),
        onBuffered: (bytes, { arriving }) => this.#count(bytes, arriving),
        onFull: () => this.#client?.state.links.setFlow(false),
        onDrain: () => this.#client?.state.links.setFlow(true),
        onClosed: () => {
          this.#close();
          resolve();
        },
      });
    });
    this.#hello = setTimeout(() => this.#socket.destroy(), HELLO_MS);
    this.#hello.unref();
  }

  /** The client's address, without its port. With `serve.proxyProtocol`, it is the address that the proxy names. */
  get address(): string {
    return this.#socket.address;
  }

  /** Undefined until a user's token was shown. */
  get client(): Client | undefined {
    return this.#client;
  }

  /** Whether a good token was shown, a user's or another host's. */
  get authenticated(): boolean {
    return this.#state === "open";
  }

  get isStranger(): boolean {
    return this.#client === undefined && this.#control === undefined;
  }

  get isAuthenticating(): boolean {
    return this.#state === "authenticating";
  }

  /** Ends the connection once all data for the client has been sent. */
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
        if (this.#admitted !== undefined && message.kind === "request" && message.method === "connect") {
          this.#greetAgain(message, this.#admitted);
          break;
        }
        (this.#control ?? this.#client?.dispatcher)?.take(message);
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
    const { token, fleet, ...hello } = params;
    const { store, directory, shares } = this.#door;
    try {
      const holder = await verifyToken(store, token);
      if (holder === null) {
        this.#report.event({ event: "token-refused", code: "FLEET_TOKEN_REFUSED" });
        await this.#attempts.failed(tokenIdIn(token));
        this.#refuse(errorFrame(id, AUTHENTICATION_FAILED, "AUTHENTICATION_FAILED"));
        return;
      }
      const protocol = clientProtocol(hello.protocolVersion);
      if (holder.role === "host") {
        await this.#admitHost(id, holder, protocol);
        return;
      }
      const via = relayedFrom(fleet);
      const isRelayed = via !== undefined;
      const { own } = directory;
      const peers = own === null || isRelayed ? null : new PeerDialer(own, hello, String(token), holder, store);
      // If the client hung up while its token was being looked up, take no share, because nothing would give it back.
      if (this.#socket.closed || this.#state !== "authenticating") return;
      this.#share = shares.admit(holder.user, isRelayed);
      const origin = { holder, protocol, share: this.#share, report: this.#report, isRelayed };
      this.#client = new Client(this.#door, this.#socket, origin, hello, peers);
      await this.#admit({ id, token: String(token), via }, this.#client);
    } catch (error) {
      // If the client has hung up, the error only reports that we gave up the work for it, so do not log it.
      if (!this.#socket.closed) this.#report.event(refusal(error));
      this.#refuse(refusalFrame(id, error));
    }
  }

  async #admit({ id, token, via }: Connect, client: Client): Promise<void> {
    clearTimeout(this.#hello);
    this.#report.user = client.state.user;
    const greeting = await client.greet();
    if (this.#socket.closed) return;
    this.#admitted = { isSameToken: recognizer(token), greeting };
    this.#open(id, greeting, {
      event: "connected",
      ...(via === undefined ? {} : { detail: `relayed by host ${via}` }),
    });
  }

  /** Answers `connect`, and takes the messages that arrived behind it. */
  #open(id: ClientRequest["id"], greeting: Params, event: ConnectionEvent): void {
    this.#state = "open";
    this.#socket.limitBytes = this.#door.config.serve.maxFrameBytes;
    this.#socket.send(encodeMessage({ id, result: greeting }));
    this.#report.event(event);
    for (const message of this.#early.splice(0)) this.#take(message);
    this.#socket.letGo(this);
  }

  /** Answers a second `connect` as a bare server does. No other token is looked up, so nobody can try tokens. */
  #greetAgain({ id, params }: ClientRequest, { isSameToken, greeting }: Admission): void {
    if (isSameToken(params.token)) {
      this.#socket.send(encodeMessage({ id, result: greeting }));
      return;
    }
    this.#report.event({ event: "token-refused", code: "FLEET_TOKEN_REFUSED" });
    this.#socket.send(errorFrame(id, AUTHENTICATION_FAILED, "AUTHENTICATION_FAILED"));
  }

  /** Admits another host. It never becomes a client, because it has no user, no home and no sessions. */
  async #admitHost(id: ClientRequest["id"], holder: HostHolder, protocol: Protocol): Promise<void> {
    const greeting = await ControlConnection.greet(this.#door, holder, protocol);
    if (this.#state === "closed") return;
    clearTimeout(this.#hello);
    this.#control = new ControlConnection(this.#socket, this.#calls, this.#report);
    this.#open(id, greeting, { event: "host-connected", detail: holder.host });
  }

  /** @param arriving how many of the bytes belong to an unfinished frame */
  #count(bytes: number, arriving: number): void {
    if (this.#share === undefined || this.#state === "closed") return;
    this.#share.buffers(bytes);
    const reached = arriving > SMALL_BYTES ? this.#share.overBytes : null;
    if (reached === null) return;
    // End the connection, because we would have to read the rest of the frame to refuse only this request.
    this.#report.event(refusal(reached));
    this.#client?.close();
    this.#refuse(refusalFrame(null, reached));
  }

  #refuse(frame: Buffer): void {
    this.#state = "closed";
    this.#socket.letGo(this); // read again, or the socket would not notice that the client has closed it
    this.#socket.end(frame);
  }

  /** A frame broke the protocol, or we failed to handle it. Ends this connection, without any effect on others. */
  #fault(error: unknown): void {
    const isFault = error instanceof ProtocolError;
    const fault = isFault ? error : new ProtocolError("A frame cannot be read.", -32700);
    if (isFault) this.#report.event({ event: "protocol-error", detail: fault.message });
    else this.#report.event({ event: "failed", detail: `while handling a frame from the client: ${describe(error)}` });
    this.#state = "closed";
    (this.#control ?? this.#client)?.close();
    this.#socket.end(errorFrame(null, fault.rpcCode, fault.message));
  }

  #close(): void {
    clearTimeout(this.#hello);
    this.#state = "closed";
    (this.#control ?? this.#client)?.close();
    this.#share?.release();
    this.#report.event({ event: "closed" });
  }
}

/** A limit that refuses a client is not a failure of the front door. */
function refusal(error: unknown): ConnectionEvent {
  if (!isFleetError(error, "FLEET_LIMIT_REACHED")) return { event: "failed", ...failure(error) };
  const { code, limit, message } = error;
  return { event: "denied", code, ...(limit === undefined ? {} : { limit }), detail: message };
}
