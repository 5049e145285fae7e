import type { Socket } from "node:net";
import { isFleetError } from "../../errors.js";
import {
  type HostHolder,
  isTokenGood,
  recognizer,
  type TokenHolder,
  tokenIdIn,
  verifyToken,
} from "../../identity/tokens.js";
import { encodeMessage, type Frame, ProtocolError } from "../../runtime/wire/frames.js";
import { Client, type ClientOrigin, type DoorServices } from "../client/client.js";
import { clientProtocol, type Protocol } from "../policy/protocols.js";
import { PeerDialer, relayedFrom } from "../routing/peers.js";
import type { DoorOwner } from "../state/door/door-state.js";
import type { DoorEvent } from "../state/door/report.js";
import { describe, failure } from "../state/door/report.js";
import type { Share, Shares } from "../state/door/shares.js";
import { type ClientMessage, type ClientRequest, type Params, readClientFrame } from "../wire/client-message.js";
import { ClientSocket } from "../wire/client-socket.js";
import { AUTHENTICATION_FAILED, AUTHENTICATION_REQUIRED, errorFrame, refusalFrame } from "../wire/refusals.js";
import type { Attempts } from "./attempts.js";
import { ControlConnection } from "./control.js";

/** The longest frame that a connection may send before it has shown a token, in bytes. That is enough for `connect`. */
const HELLO_BYTES = 16 * 1024;
/** The limit on unread bytes ends a connection only if its unfinished frame already has more bytes than this. */
const SMALL_BYTES = 64 * 1024;
/** How long a connection may take to show a token, in milliseconds. */
const HELLO_MS = 10_000;

export interface ConnectionServices extends DoorServices, Pick<DoorOwner, "control"> {
  attempts: Attempts;
  shares: Shares;
}

interface Connect {
  id: ClientRequest["id"];
  token: string;
}

/** How a client was let in. */
interface Admission {
  isSameToken: (shown: unknown) => boolean;
  /** The answer to its `connect`. */
  greeting: Params;
}

/** One connection to the front door. It is a stranger's until it shows a token, then a client's or another host's. */
export class Connection {
  readonly #services: ConnectionServices;
  readonly #socket: ClientSocket;
  readonly #onClosed: (connection: Connection) => void;
  readonly #hello: NodeJS.Timeout;
  /** The messages that arrived behind `connect` before it was answered. */
  readonly #early: ClientMessage[] = [];
  #state: "new" | "authenticating" | "open" | "closed" = "new";
  #client: Client | undefined;
  #admitted: Admission | undefined;
  #share: Share | undefined;
  /** Set instead of the client when another host has connected. */
  #control: ControlConnection | undefined;

  constructor(socket: Socket, services: ConnectionServices, onClosed: (connection: Connection) => void) {
    this.#services = services;
    this.#onClosed = onClosed;
    const listener = {
      onFrames: (frames: readonly Frame[]) => this.#takeAll(frames),
      onProtocolError: (error: unknown) => this.#fault(error),
      onBuffered: (bytes: number, { arriving }: { arriving: number }) => this.#count(bytes, arriving),
      onFull: () => this.#client?.setFlow(false),
      onDrain: () => this.#client?.setFlow(true),
      onClosed: () => this.#close(),
    };
    const { proxyProtocol } = services.config.serve;
    this.#socket = new ClientSocket(socket, HELLO_BYTES, listener, { proxyProtocol });
    this.#hello = setTimeout(() => this.#socket.destroy(), HELLO_MS);
    this.#hello.unref();
  }

  /** The client's address, without its port. With `serve.proxyProtocol`, it is the address that the proxy names. */
  get address(): string {
    return this.#socket.address;
  }

  /** The client; undefined until a user's token was shown. */
  get client(): Client | undefined {
    return this.#client;
  }

  /** Whether a good token was shown, a user's or another host's. */
  get authenticated(): boolean {
    return this.#state === "open";
  }

  /** Whether it is still unknown who has connected. */
  get isStranger(): boolean {
    return this.#client === undefined && this.#control === undefined;
  }

  /** Whether its token is being looked up. */
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
        (this.#control ?? this.#client)?.take(message);
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
    try {
      const holder = await verifyToken(this.#services.store, token);
      if (holder === null) {
        this.#tell({ event: "token-refused", code: "FLEET_TOKEN_REFUSED" });
        await this.#services.attempts.failed(tokenIdIn(token));
        this.#refuse(errorFrame(id, AUTHENTICATION_FAILED, "AUTHENTICATION_FAILED"));
        return;
      }
      const protocol = clientProtocol(hello.protocolVersion);
      if (holder.role === "host") {
        await this.#admitHost(id, holder, protocol);
        return;
      }
      const via = relayedFrom(fleet);
      const { own } = this.#services.directory;
      const isGood = async () => await isTokenGood(this.#services.store, holder);
      const peers = own === null || via !== undefined ? null : new PeerDialer(own, hello, String(token), isGood);
      // If the client hung up while its token was being looked up, nothing would give the share back.
      if (this.#socket.closed) return;
      this.#share = this.#services.shares.admit(holder.user, via !== undefined);
      await this.#admit({ id, token: String(token) }, holder, { hello, protocol, via, peers, share: this.#share });
    } catch (error) {
      // If the client has hung up, the error only reports that we gave up the work for it, so do not log it.
      if (!this.#socket.closed) this.#tell(refusal(error));
      this.#refuse(refusalFrame(id, error));
    }
  }

  async #admit({ id, token }: Connect, holder: TokenHolder, origin: ClientOrigin): Promise<void> {
    if (this.#state === "closed") return;
    clearTimeout(this.#hello);
    this.#client = new Client(this.#services, this.#socket, holder, origin);
    const greeting = await this.#client.greet();
    if (this.#socket.closed) return;
    this.#admitted = { isSameToken: recognizer(token), greeting };
    this.#state = "open";
    this.#socket.limitBytes = this.#services.config.serve.maxFrameBytes;
    this.#socket.send(encodeMessage({ id, result: greeting }));
    this.#tell({
      event: "connected",
      ...(origin.via === undefined ? {} : { detail: `relayed by host ${origin.via}` }),
    });
    for (const message of this.#early.splice(0)) this.#take(message);
    this.#socket.letGo(this);
  }

  /**
   * Answers a second `connect` as a bare server does. Only the token of the first one counts. No other token is looked
   * up, so nobody can try tokens here.
   */
  #greetAgain({ id, params }: ClientRequest, { isSameToken, greeting }: Admission): void {
    if (isSameToken(params.token)) {
      this.#socket.send(encodeMessage({ id, result: greeting }));
      return;
    }
    this.#tell({ event: "token-refused", code: "FLEET_TOKEN_REFUSED" });
    this.#socket.send(errorFrame(id, AUTHENTICATION_FAILED, "AUTHENTICATION_FAILED"));
  }

  /** Admits another host. It never becomes a client, because it has no user, no home and no sessions. */
  async #admitHost(id: ClientRequest["id"], holder: HostHolder, protocol: Protocol): Promise<void> {
    const { control } = this.#services;
    const greeting = await ControlConnection.greet(this.#services, holder, protocol);
    if (this.#state === "closed") return;
    clearTimeout(this.#hello);
    this.#control = new ControlConnection(this.#socket, control, (event) => this.#tell(event));
    this.#state = "open";
    this.#socket.limitBytes = this.#services.config.serve.maxFrameBytes;
    this.#socket.send(encodeMessage({ id, result: greeting }));
    this.#tell({ event: "host-connected", detail: holder.host });
    for (const message of this.#early.splice(0)) this.#control.take(message);
    this.#socket.letGo(this);
  }

  /** @param arriving how many of the bytes belong to an unfinished frame */
  #count(bytes: number, arriving: number): void {
    if (this.#share === undefined || this.#state === "closed") return;
    this.#share.buffers(bytes);
    const reached = arriving > SMALL_BYTES ? this.#share.overBytes : null;
    if (reached === null) return;
    // End the connection, because we would have to read the rest of the frame to refuse only this request.
    this.#tell(refusal(reached));
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
    if (isFault) this.#tell({ event: "protocol-error", detail: fault.message });
    else this.#tell({ event: "failed", detail: `while handling a frame from the client: ${describe(error)}` });
    this.#state = "closed";
    (this.#control ?? this.#client)?.close();
    this.#socket.end(errorFrame(null, fault.rpcCode, fault.message));
  }

  #close(): void {
    clearTimeout(this.#hello);
    this.#state = "closed";
    (this.#control ?? this.#client)?.close();
    this.#share?.release();
    this.#tell({ event: "closed" });
    this.#onClosed(this);
  }

  #tell(event: Omit<DoorEvent, "address" | "user">): void {
    const user = this.#client?.holder.user;
    this.#services.onEvent({ ...event, address: this.address, ...(user === undefined ? {} : { user }) });
  }
}

/** A limit that refuses a client is not a failure of the front door. */
function refusal(error: unknown): Omit<DoorEvent, "address" | "user"> {
  if (!isFleetError(error, "FLEET_LIMIT_REACHED")) return { event: "failed", ...failure(error) };
  const { code, limit, message } = error;
  return { event: "denied", code, ...(limit === undefined ? {} : { limit }), detail: message };
}
