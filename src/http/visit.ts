import { randomUUID } from "node:crypto";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { HttpBindings } from "@hono/node-server";
import type { Context } from "hono";
import type { FleetError } from "../base/errors.js";
import { describe } from "../door/state/report.js";
import type { Share } from "../door/state/shares.js";
import { type Identity, isHost } from "../identity/identity.js";
import { tokenIdIn } from "../identity/tokens.js";
import type { DoorState } from "./door-state.js";
import { HEADERS, isForLog, unauthenticated } from "./problem.js";

const BEARER = /^Bearer +([\x21-\x7e]{1,16384})$/i;
export type Env = { Bindings: HttpBindings; Variables: { visit: Visit } };
export type Request = Context<Env>;
type Headers = Readonly<Record<string, string>>;

export const JSON_TYPE = { "Content-Type": "application/json" };
/** A request id that a client or a proxy chose. */
const REQUEST_ID = /^[A-Za-z0-9_-]{1,64}$/;
/**
 * The route name of requests that match no route. Their paths must not become labels of metrics, because a client could
 * send any number of paths.
 */
const UNKNOWN = "unknown";
const DENIED: ReadonlySet<number> = new Set([401, 403, 404, 429]);

/**
 * One request on its way through the API: its id, the user behind it, and its reports for the log and the metrics. The
 * door counts it from {@link begin} until it is disposed: its work is over, and its answer is sent or its client has
 * gone.
 */
export class Visit implements Disposable {
  readonly id: string;
  /** The headers of the answer. */
  readonly headers: Record<string, string>;
  /** The name of the route, once it is known. */
  route = UNKNOWN;
  /** Null until the user is known. */
  identity: Identity | null = null;
  /** The part of the user's limits that the request uses. */
  share: Share | null = null;
  /** Whether a draining door ends the request. Streams would not end by themselves. */
  endsWithDrain = false;
  readonly #door: DoorState;
  readonly #request: IncomingMessage;
  readonly #response: ServerResponse;
  readonly #begun = performance.now();
  readonly #cut = new AbortController();
  readonly #kept: Disposable[] = [];
  #code: FleetError["code"] | undefined;
  #isAbandoned = false;

  constructor(door: DoorState, { incoming, outgoing }: HttpBindings, givenId: string | undefined) {
    this.#door = door;
    this.#request = incoming;
    this.#response = outgoing as ServerResponse;
    this.id = givenId !== undefined && REQUEST_ID.test(givenId) ? givenId : randomUUID();
    this.headers = { ...HEADERS, "X-Request-Id": this.id };
  }

  /** Aborts when the door closes, or when the token of the request is no longer valid. */
  get signal(): AbortSignal {
    return this.#cut.signal;
  }

  begin(): this {
    this.#door.begun(this);
    return this;
  }

  cut(reason: Error): void {
    this.#cut.abort(reason);
  }

  /** Disposes `thing` when the request ends. Returns `thing`. */
  keep<T extends Disposable>(thing: T): T {
    this.#kept.push(thing);
    return thing;
  }

  [Symbol.dispose](): void {
    for (const each of this.#kept.splice(0)) each[Symbol.dispose]();
    this.#door.ended(this);
  }

  /**
   * Returns a signal that aborts when `lasting` aborts, or when the client disconnects before it has received the whole
   * answer.
   *
   * @param lasting {@link signal} for a request without a time limit, which gets no controller of its own, because many
   * streams may be open
   */
  untilClientLeaves(lasting: AbortSignal): AbortSignal {
    const end = lasting === this.signal ? this.#cut : new AbortController();
    const leave = () => end.abort(new Error("The client has gone."));
    this.#response.on("close", () => {
      if (!this.#response.writableFinished) leave();
    });
    if (this.#response.destroyed) leave();
    if (lasting === this.signal) return lasting;
    const follow = () => end.abort(lasting.reason);
    lasting.addEventListener("abort", follow, { once: true });
    if (lasting.aborted) follow();
    return end.signal;
  }

  /**
   * Counts the bytes of the answer against the user's limits, in place of the bytes of the request's body, until the
   * client has received the answer or has disconnected.
   *
   * @throws FleetError `FLEET_LIMIT_REACHED` if `orRefuse` is set and the user's clients leave too many bytes unread.
   */
  unread(bytes: number, { orRefuse }: { orRefuse: boolean }): void {
    this.share?.buffers(0);
    const over = this.share?.overBytes ?? null;
    if (orRefuse && over !== null) throw over;
    this.share?.buffers(bytes);
  }

  /**
   * Finds out who makes the request. Called once.
   *
   * @throws FleetError `FLEET_TOKEN_REFUSED`, always with the same text
   */
  async signOn(header: string | undefined): Promise<Identity> {
    const { signOn, attempts, signOnEvents, strangers, listeners } = this.#door;
    const address = this.#address;
    const { socket } = this.#request;
    using _ = strangers.hold(socket, "lookups");
    const token = BEARER.exec(header ?? "")?.[1];
    if (token === undefined) throw unauthenticated();
    const identity = await signOn.identify(token, address);
    if ("refused" in identity || isHost(identity)) {
      const detail = "refused" in identity ? identity.refused : "It is the token of another host.";
      listeners.onEvent?.({ event: "token-refused", address, code: "FLEET_TOKEN_REFUSED", detail });
      const tokenId = tokenIdIn(token);
      await Promise.all([attempts.failed(tokenId), signOnEvents.refused(tokenId, address)]);
      throw unauthenticated();
    }
    await signOnEvents.acceptedAgain(identity, address);
    this.keep(strangers.hold(socket, "requests"));
    this.identity = identity;
    return identity;
  }

  /** Reports a failure. @param thrown the original error, for the log */
  failed({ code, message, limit }: FleetError, status: number, thrown: unknown): void {
    this.#code = code;
    // GitHub may have revoked the token with which the user signed on, so check it again.
    if (code === "FLEET_CREDENTIAL_REFUSED" && this.identity !== null) this.#door.signOn.recheck(this.identity);
    const user = this.identity === null ? {} : { user: this.identity.user };
    const about = { address: this.#address, method: this.route, code, ...user };
    const { onEvent } = this.#door.listeners;
    if (limit !== undefined) onEvent?.({ event: "denied", ...about, limit, detail: message });
    else if (isForLog({ code }))
      onEvent?.({ event: "failed", ...about, detail: `request ${this.id}: ${describe(thrown)}` });
    else if (status === 403) onEvent?.({ event: "denied", ...about, detail: message });
  }

  /** Records that the client has gone before its request was answered. */
  abandoned(): void {
    this.#isAbandoned = true;
  }

  /** Reports the end of the request. */
  ended(status: number): void {
    const failure = this.#isAbandoned ? "abandoned" : DENIED.has(status) ? "denied" : "failed";
    const outcome = status < 400 ? "answered" : failure;
    const code = this.#code === undefined ? {} : { code: this.#code };
    const ms = performance.now() - this.#begun;
    this.#door.listeners.onRequest?.({ user: this.identity?.user ?? "", method: this.route, outcome, ...code, ms });
  }

  get #address(): string {
    return this.#door.addresses.of(this.#request);
  }
}

/** Answers a request, and reports its end. */
export function reply(c: Request, status: number, headers: Headers, body: string | null = null): Response {
  const visit = c.get("visit");
  visit.ended(status);
  return new Response(body, { status, headers: { ...visit.headers, ...headers } });
}
