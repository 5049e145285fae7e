import { type Limited, type LimitName, type Limits, limitReached } from "../../../config/limits.js";
import type { FleetError } from "../../../errors.js";

/** The quantities that a front door counts itself. Sessions are counted in the store. */
type Counted = Exclude<Limited, "sessions">;
type Use = Record<Counted, number>;

const NOTHING: Readonly<Use> = { connections: 0, requestsInFlight: 0, unreadBytes: 0 };

/** How much of one front door each user has, and all users together have, at the moment. */
export class Shares {
  readonly #limits: { default: Limits; total: Limits };
  readonly #users = new Map<string, Use>();
  readonly #total: Use = { ...NOTHING };

  constructor(limits: { default: Limits; total: Limits }) {
    this.#limits = limits;
  }

  /**
   * Counts one more connection of a user.
   *
   * @param relayed Whether the client claims that another host's front door relays it. Relayed connections count
   * separately because the client also counts at the other door, and because the claim is not proved.
   * @throws FleetError `FLEET_LIMIT_REACHED`.
   */
  admit(user: string, relayed: boolean): Share {
    // A user id cannot contain a colon.
    const name = relayed ? `relayed:${user}` : user;
    const use = this.#users.get(name) ?? { ...NOTHING };
    const reached = this.#reached(use, "connections", 1);
    if (reached !== null) throw reached;
    this.#users.set(name, use);
    const forget = () => {
      if (use.connections === 0 && this.#users.get(name) === use) this.#users.delete(name);
    };
    const add = (what: Counted, count: number) => {
      use[what] += count;
      this.#total[what] += count;
    };
    add("connections", 1);
    return new Share({ add, reached: (what) => this.#reached(use, what, 0), forget });
  }

  /** @param more how much is about to be added */
  #reached(use: Use, what: Counted, more: number): FleetError | null {
    const check = (limit: LimitName, now: number, max: number | null) =>
      max !== null && now + more > max ? limitReached(limit, max) : null;
    return (
      check(what, use[what], this.#limits.default[what]) ??
      check(`total.${what}`, this.#total[what], this.#limits.total[what])
    );
  }
}

interface Account {
  add: (what: Counted, count: number) => void;
  reached: (what: Counted) => FleetError | null;
  forget: () => void;
}

/** The part of its user's limits that one connection has. */
export class Share {
  readonly #account: Account;
  #requests = 0;
  #requestBytes = 0;
  #bufferedBytes = 0;
  #released = false;

  constructor(account: Account) {
    this.#account = account;
  }

  /** Counts a request that has arrived. Its content is kept in memory until it is answered. */
  begin(bytes: number): void {
    this.#count(1, bytes, 0);
  }

  end(bytes: number): void {
    this.#count(-1, -bytes, 0);
  }

  /** Sets how many bytes the connection's buffers hold: unfinished frames, and data that the client has not read. */
  buffers(bytes: number): void {
    this.#count(0, 0, bytes - this.#bufferedBytes);
  }

  /** The refusal if there are more requests in flight than allowed, or null. */
  get overRequests(): FleetError | null {
    return this.#account.reached("requestsInFlight");
  }

  /** The refusal if there are more bytes in buffers than allowed, or null. */
  get overBytes(): FleetError | null {
    return this.#account.reached("unreadBytes");
  }

  /** Returns everything when the connection has ended. */
  release(): void {
    this.#count(-this.#requests, -this.#requestBytes, -this.#bufferedBytes);
    if (!this.#released) this.#account.add("connections", -1);
    this.#released = true;
    this.#account.forget();
  }

  #count(requests: number, requestBytes: number, bufferedBytes: number): void {
    if (this.#released) return;
    this.#requests += requests;
    this.#requestBytes += requestBytes;
    this.#bufferedBytes += bufferedBytes;
    this.#account.add("requestsInFlight", requests);
    this.#account.add("unreadBytes", requestBytes + bufferedBytes);
  }
}
