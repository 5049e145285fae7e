import { randomUUID } from "node:crypto";
import type { IncomingMessage } from "node:http";
import type { FleetError } from "../base/errors.js";
import { describe } from "../door/state/report.js";
import type { Identity } from "../identity/identity.js";
import type { DoorState, Work } from "./door-state.js";
import { HEADERS, isForLog } from "./problem.js";

/** A request id that a client or a proxy chose. */
const REQUEST_ID = /^[A-Za-z0-9_-]{1,64}$/;
/**
 * The route name of requests that match no route. Their paths must not become labels of metrics, because a client could
 * send any number of paths.
 */
const UNKNOWN = "unknown";
const DENIED: ReadonlySet<number> = new Set([401, 403, 404, 429]);

/** One request on its way through the API: its id, the user behind it, and its reports for the log and the metrics. */
export class Visit {
  readonly id: string;
  /** The headers of the answer. */
  readonly headers: Record<string, string>;
  /** The name of the route, once it is known. */
  route = UNKNOWN;
  readonly #door: DoorState;
  readonly #request: IncomingMessage;
  readonly #begun = performance.now();
  #identity: Identity | undefined;
  #code: FleetError["code"] | undefined;
  #isAbandoned = false;

  constructor(door: DoorState, request: IncomingMessage, givenId: string | undefined) {
    this.#door = door;
    this.#request = request;
    this.id = givenId !== undefined && REQUEST_ID.test(givenId) ? givenId : randomUUID();
    this.headers = { ...HEADERS, "X-Request-Id": this.id };
  }

  /**
   * Finds out who makes the request, and sets the identity of `work`. Called once. @throws FleetError
   * `FLEET_TOKEN_REFUSED`.
   */
  async signOn(header: string | undefined, work: Work): Promise<Identity> {
    const { authenticator, strangers, listeners } = this.#door;
    const { socket } = this.#request;
    using _ = strangers.hold(socket);
    const identity = await authenticator.identify(header, this.#address, (detail) => {
      listeners.onEvent?.({ event: "token-refused", address: this.#address, code: "FLEET_TOKEN_REFUSED", detail });
    });
    work.keep(strangers.admit(socket));
    work.identity = identity;
    this.#identity = identity;
    return identity;
  }

  /** Reports a failure. @param thrown the original error, for the log */
  failed({ code, message, limit }: FleetError, status: number, thrown: unknown): void {
    this.#code = code;
    // GitHub may have revoked the token with which the user signed on, so check it again.
    if (code === "FLEET_CREDENTIAL_REFUSED" && this.#identity !== undefined) this.#door.signOn.recheck(this.#identity);
    const user = this.#identity === undefined ? {} : { user: this.#identity.user };
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
    this.#door.listeners.onRequest?.({ user: this.#identity?.user ?? "", method: this.route, outcome, ...code, ms });
  }

  get #address(): string {
    return this.#door.addresses.of(this.#request);
  }
}
