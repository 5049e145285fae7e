import type { Socket } from "node:net";
import type { Clock } from "../../base/clock.js";
import { isFleetError } from "../../base/errors.js";
import { LONGEST_TIMER_MS } from "../../base/values/measures.js";
import { type HostIdentity, type Identity, isHost } from "../../identity/identity.js";
import { actingFor, type SignOn } from "../../identity/sign-on.js";
import { recognizer, tokenIdIn } from "../../identity/tokens.js";
import { encodeMessage, type Frame, ProtocolError } from "../../runtime/wire/frames.js";
import { Client } from "../client/client.js";
import { clientProtocol, type Protocol } from "../policy/methods.js";
import { PeerDialer, relayedFrom } from "../routing/connector.js";
import type { DoorState } from "../state/door-state.js";
import { type ConnectionEvent, describe, failure, Reporter } from "../state/report.js";
import type { Share } from "../state/shares.js";
import { type ClientMessage, type ClientRequest, type Params, readClientFrame } from "../wire/client-message.js";
import { ClientSocket } from "../wire/client-socket.js";
import {
  AUTHENTICATION_FAILED,
  AUTHENTICATION_REQUIRED,
  doorDraining,
  errorFrame,
  refusalFrame,
} from "../wire/refusals.js";
import { ControlConnection, type HostCalls } from "./control.js";

/** The longest frame that a connection may send before it has shown a token, in bytes. That is enough for `connect`. */
const HELLO_BYTES = 16 * 1024;
/** Replaces `HELLO_BYTES` if clients may show JSON Web Tokens, because these may be long. */
const LONG_HELLO_BYTES = 24 * 1024;
/** A connection over the limit on unread bytes is closed only if its unfinished frame has more bytes than this. */
const SMALL_BYTES = 64 * 1024;
/** How long a connection may take to show a token, in milliseconds. */
export const HELLO_MS = 10_000;

/** Facts about a TLS connection, from its handshake. */
interface Secured {
  /** The client's address, without its port. */
  address: string;
  /** How long the client may still take to show a token, in milliseconds. */
  restMs: number;
}

interface Admission {
  isSameToken: (shown: unknown) => boolean;
  greeting: Params;
}

/**
 * One connection to the front door. A good token makes it the connection of a client or of another host. Its states:
 *
 * | state            | the other side                    | the next message                          |
 * | ---------------- | --------------------------------- | ----------------------------------------- |
 * | `new`            | has shown no token                | must be `connect`                         |
 * | `authenticating` | has shown a token, has no answer  | waits in `#early`                         |
 * | `open`           | is `#client` or `#control`        | goes to the dispatcher or to `#control`   |
 * | `closed`         | was refused, or has disconnected  | is ignored                                |
 */
export class Connection {
  /** Resolves when the connection has ended. */
  readonly closed: Promise<void>;
  readonly socket: ClientSocket;
  readonly #door: DoorState;
  readonly #attempts: Attempts;
  readonly #calls: HostCalls;
  readonly #report: Reporter;
  /** Cancels the time limit for showing a token. */
  readonly #greeted: () => void;
  /** The messages that arrived after `connect` and before its answer. */
  readonly #early: ClientMessage[] = [];
  #state: "new" | "authenticating" | "open" | "closed" = "new";
  #client: Client | undefined;
  #admitted: Admission | undefined;
  #share: Share | undefined;
  #expiry: Disposable | undefined;
  /** Set in place of `#client` if another host has connected. */
  #control: ControlConnection | undefined;

  /** @param secured undefined if the connection is plain TCP */
  constructor(socket: Socket, door: DoorState, attempts: Attempts, calls: HostCalls, secured?: Secured) {
    this.#door = door;
    this.#attempts = attempts;
    this.#calls = calls;
    const { serve, identity } = door.config;
    const { proxyProtocol } = serve;
    const origin = secured === undefined ? { proxyProtocol } : { address: secured.address };
    const helloBytes = identity.jwt.length === 0 ? HELLO_BYTES : LONG_HELLO_BYTES;
    this.socket = new ClientSocket(socket, helloBytes, origin);
    this.#report = new Reporter(door.listeners, this.socket);
    this.closed = new Promise((resolve) => {
      this.socket.listen({
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
    this.#greeted = door.clock.after(secured?.restMs ?? HELLO_MS, () => this.socket.destroy());
  }

  /** Undefined until the other side has shown a user's token. */
  get client(): Client | undefined {
    return this.#client;
  }

  /** Whether the other side has shown a good token, a user's or another host's. */
  get authenticated(): boolean {
    return this.#state === "open";
  }

  get isStranger(): boolean {
    return this.#client === undefined && this.#control === undefined;
  }

  /** Resolves when the other side has the answers to its requests. Rejects when the signal aborts. */
  async settled(signal: AbortSignal): Promise<void> {
    await (this.#control ?? this.#client?.state)?.settled(signal);
  }

  destroy(): void {
    this.socket.destroy();
  }

  get isAuthenticating(): boolean {
    return this.#state === "authenticating";
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
          this.socket.end(errorFrame(id, AUTHENTICATION_REQUIRED, "AUTHENTICATION_REQUIRED"));
          this.#state = "closed";
          break;
        }
        if (this.#door.draining) {
          this.#refuse(refusalFrame(message.id, doorDraining()));
          break;
        }
        this.#state = "authenticating";
        this.socket.hold(this);
        void this.#authenticate(message);
        break;
    }
  }

  /** Never rejects. */
  async #authenticate({ id, params }: ClientRequest): Promise<void> {
    const { token, fleet, ...hello } = params;
    const { directory, shares, signOn, signOns } = this.#door;
    try {
      const identity = await signOn.identify(token, this.socket.address);
      if ("refused" in identity) {
        this.#report.event({ event: "token-refused", code: "FLEET_TOKEN_REFUSED", detail: identity.refused });
        await Promise.all([
          this.#attempts.failed(tokenIdIn(token)),
          signOns.refused(tokenIdIn(token), this.socket.address),
        ]);
        this.#refuse(errorFrame(id, AUTHENTICATION_FAILED, "AUTHENTICATION_FAILED"));
        return;
      }
      const protocol = clientProtocol(hello.protocolVersion);
      if (isHost(identity)) {
        await this.#admitHost(id, identity, protocol);
        return;
      }
      const via = relayedFrom(fleet);
      const isRelayed = via !== undefined;
      const { own } = directory;
      const peers =
        own === null || isRelayed ? null : new PeerDialer(own, this.#door.config.host, hello, identity, this.#door);
      // If the client disconnected while its token was being looked up, do not count it for the user's limits, because
      // nothing would subtract it again.
      if (this.socket.closed || this.#state !== "authenticating") return;
      const asked = { relayed: isRelayed, everywhere: true };
      const share = await actingFor(identity, "door", async () => await shares.admitUser(identity.user, asked));
      if (this.socket.closed) {
        share.release();
        return;
      }
      this.#share = share;
      const origin = { identity, protocol, share: this.#share, report: this.#report, isRelayed };
      const logged = signOns.accepted(identity, this.socket.address);
      logged.catch(() => undefined); // awaited below
      this.#client = actingFor(identity, "door", () => new Client(this.#door, this.socket, origin, hello, peers));
      this.#greeted();
      this.#report.user = identity.user;
      this.#expiry = atExpiry(identity, signOn, () => this.#expired());
      const client = this.#client;
      const greeting = await actingFor(identity, "door", async () => await client.greet());
      await logged;
      if (this.socket.closed) return;
      this.#admitted = { isSameToken: recognizer(String(token)), greeting };
      const details = [
        identity.via === "token" ? [] : identity.tokenId,
        isRelayed ? `relayed by host ${via}` : [],
      ].flat();
      this.#open(id, greeting, { event: "connected", ...(details.length > 0 ? { detail: details.join(", ") } : {}) });
    } catch (error) {
      // If the client has disconnected, do not log the error, because it only reports that the work was given up.
      if (!this.socket.closed) this.#report.event(refusal(error));
      this.#refuse(refusalFrame(id, error));
    }
  }

  /** Answers `connect`, and then handles the messages that arrived after it. */
  #open(id: ClientRequest["id"], greeting: Params, event: ConnectionEvent): void {
    this.#state = "open";
    this.socket.limitBytes = this.#door.config.serve.maxFrameBytes;
    this.socket.send(encodeMessage({ id, result: greeting }));
    this.#report.event(event);
    for (const message of this.#early.splice(0)) this.#take(message);
    this.socket.letGo(this);
  }

  /** Answers a second `connect`. Accepts only the token of the first, so that nobody can try out tokens this way. */
  #greetAgain({ id, params }: ClientRequest, { isSameToken, greeting }: Admission): void {
    if (isSameToken(params.token)) {
      this.socket.send(encodeMessage({ id, result: greeting }));
      return;
    }
    this.#report.event({ event: "token-refused", code: "FLEET_TOKEN_REFUSED" });
    this.socket.send(errorFrame(id, AUTHENTICATION_FAILED, "AUTHENTICATION_FAILED"));
  }

  /** Admits another host. It does not become a client, because it has no user, no home and no sessions. */
  async #admitHost(id: ClientRequest["id"], host: HostIdentity, protocol: Protocol): Promise<void> {
    const greeting = await ControlConnection.greet(this.#door, host, protocol);
    await this.#door.signOns.accepted(host, this.socket.address);
    if (this.#state === "closed") return;
    this.#greeted();
    this.#control = new ControlConnection(this.socket, this.#calls, this.#report);
    this.#open(id, greeting, { event: "host-connected", detail: host.host });
  }

  /** Counts the buffered bytes. Ends the connection if its unfinished frame (`arriving` bytes) exceeds a limit. */
  #count(bytes: number, arriving: number): void {
    if (this.#share === undefined || this.#state === "closed") return;
    this.#share.buffers(bytes);
    const reached = arriving > SMALL_BYTES ? this.#share.overBytes : null;
    if (reached === null) return;
    // End the connection. To refuse only this request, the door would have to read the rest of the frame.
    this.#report.event(refusal(reached));
    this.#client?.close();
    this.#refuse(refusalFrame(null, reached));
  }

  #refuse(frame: Buffer): void {
    this.#state = "closed";
    this.socket.letGo(this); // read again, because otherwise the socket does not notice that the client closes it
    this.socket.end(frame);
  }

  /** Ends this connection, because a frame broke the protocol or the door failed to handle the frame. */
  #fault(error: unknown): void {
    const isFault = error instanceof ProtocolError;
    const fault = isFault ? error : new ProtocolError("A frame cannot be read.", -32700);
    if (isFault) this.#report.event({ event: "protocol-error", detail: fault.message });
    else this.#report.event({ event: "failed", detail: `while handling a frame from the client: ${describe(error)}` });
    this.#state = "closed";
    (this.#control ?? this.#client)?.close();
    this.socket.end(errorFrame(null, fault.rpcCode, fault.message));
  }

  #expired(): void {
    this.#report.event({ event: "token-refused", detail: "The token has expired." });
    this.socket.destroy();
  }

  #close(): void {
    this.#greeted();
    this.#expiry?.[Symbol.dispose]();
    this.#state = "closed";
    (this.#control ?? this.#client)?.close();
    this.#share?.release();
    this.#report.event({ event: "closed" });
  }
}

const DENIED: readonly string[] = ["FLEET_LIMIT_REACHED", "FLEET_USER_SUSPENDED", "FLEET_PROTOCOL_UNSUPPORTED"];

/**
 * The event for a refused connection. A client over a limit, of a suspended user or with another protocol is `denied`;
 * all other errors are failures of the door.
 */
function refusal(error: unknown): ConnectionEvent {
  if (!isFleetError(error) || !DENIED.includes(error.code)) return { event: "failed", ...failure(error) };
  const { code, limit, message } = error;
  return { event: "denied", code, ...(limit === undefined ? {} : { limit }), detail: message };
}

/**
 * If a credential has expired by this machine's clock but not by the store's clock, the door checks it again after this
 * time, in milliseconds.
 */
const AGAIN_MS = 1_000;

/** Calls `end` when the credential of an identity expires. Dispose the result when the connection ends. */
function atExpiry(identity: Identity, signOn: SignOn, end: () => void): Disposable {
  const endMs = identity.expiresAt === null ? Number.POSITIVE_INFINITY : Date.parse(identity.expiresAt);
  let timer: NodeJS.Timeout | undefined;
  let isOver = false;
  const look = async () => {
    const isGood = Date.now() < endMs || (await signOn.isStillGood(identity).catch(() => true));
    if (isOver) return;
    if (isGood) wait();
    else end();
  };
  const wait = () => {
    const ms = Math.min(Math.max(endMs - Date.now(), AGAIN_MS), LONGEST_TIMER_MS);
    timer = setTimeout(() => void look(), ms);
    timer.unref();
  };
  if (identity.expiresAt !== null) wait();
  return {
    [Symbol.dispose]: () => {
      isOver = true;
      clearTimeout(timer);
    },
  };
}

/**
 * How long to delay the answer to the first wrong token, in milliseconds. Each further wrong token with the same id
 * doubles the delay.
 */
const FIRST_DELAY_MS = 250;
const LONGEST_DELAY_MS = 8_000;
/** The count of an id's failures falls by one every this many milliseconds. */
const FORGIVEN_MS = 10_000;
/**
 * How many ids the door remembers. For another one, it forgets the id that failed longest ago, so nobody can fill the
 * memory.
 */
const MAX_IDS = 10_000;
/** How many answers the door delays at the same time. To delay another one, it sends the oldest of them at once. */
const MAX_DELAYED = 256;

interface Failures {
  count: number;
  sinceMs: number;
}

/**
 * Slows down clients that guess tokens. Failures are counted by the id in the token, not by address, because all
 * clients behind one proxy have the same address. A good token is never delayed or refused.
 */
export class Attempts {
  readonly #failures = new Map<string, Failures>();
  readonly #delayed = new Set<() => void>();
  readonly #clock: Pick<Clock, "now">;

  /** @param clock replaced in tests */
  constructor(clock: Pick<Clock, "now"> = performance) {
    this.#clock = clock;
  }

  /**
   * Counts a wrong token, and resolves when the door may answer.
   *
   * @param tokenId undefined if the text does not have the form of a token
   */
  async failed(tokenId: string | undefined): Promise<void> {
    const ms = tokenId === undefined ? FIRST_DELAY_MS : this.#count(tokenId);
    const [longest] = this.#delayed;
    if (this.#delayed.size >= MAX_DELAYED) longest?.();
    await new Promise<void>((resolve) => {
      const answer = () => {
        clearTimeout(timer);
        this.#delayed.delete(answer);
        resolve();
      };
      const timer = setTimeout(answer, ms);
      timer.unref();
      this.#delayed.add(answer);
    });
  }

  /** @returns how long to delay the answer, in milliseconds. */
  #count(tokenId: string): number {
    const known = this.#failures.get(tokenId);
    const count = (known === undefined ? 0 : this.#left(known)) + 1;
    this.#failures.delete(tokenId);
    this.#failures.set(tokenId, { count, sinceMs: this.#clock.now() });
    const oldest = this.#failures.keys().next().value;
    if (this.#failures.size > MAX_IDS && oldest !== undefined) this.#failures.delete(oldest);
    return Math.min(FIRST_DELAY_MS * 2 ** Math.floor(count - 1), LONGEST_DELAY_MS);
  }

  #left({ count, sinceMs }: Failures): number {
    return Math.max(0, count - (this.#clock.now() - sinceMs) / FORGIVEN_MS);
  }
}
