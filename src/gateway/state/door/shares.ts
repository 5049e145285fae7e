import { type Limited, type LimitName, type Limits, limitReached } from "../../../config/limits.js";
import type { FleetError } from "../../../errors.js";

/** The limited quantities that a front door counts itself. The store counts sessions. */
type Counted = Exclude<Limited, "sessions">;
type Use = Record<Counted, number>;
/** The limits of each user, and those of all users together. */
type AllLimits = { default: Limits; total: Limits };

const NOTHING: Readonly<Use> = { connections: 0, requestsInFlight: 0, unreadBytes: 0 };

/** Counts the load of each user, and of all users together, on one front door. */
export class Shares {
  readonly #limits: AllLimits;
  readonly #users = new Map<string, Account>();
  readonly #total: Use = { ...NOTHING };

  constructor(limits: AllLimits) {
    this.#limits = limits;
  }

  /**
   * Counts one more connection of a user.
   *
   * @param relayed whether the client claims that another front door relays it. Such connections count in a separate account
   * of the user, because the client also counts at the other door, and because nothing proves the claim.
   */
  admit(user: string, relayed: boolean): Share {
    // A user id cannot contain a colon, so this name is never that of another user.
    const name = relayed ? `relayed:${user}` : user;
    const account = this.#users.get(name) ?? new Account(name, this.#users, this.#total, this.#limits);
    const reached = account.reached("connections", 1);
    if (reached !== null) throw reached;
    account.open();
    return new Share(account);
  }

  /** How many connections the user has open here. */
  connectionsOf(user: string): number {
    return this.#users.get(user)?.connections ?? 0;
  }
}

/** The load that one user puts on a front door. */
class Account {
  readonly #name: string;
  readonly #users: Map<string, Account>;
  readonly #use: Use = { ...NOTHING };
  readonly #total: Use;
  readonly #limits: AllLimits;

  constructor(name: string, users: Map<string, Account>, total: Use, limits: AllLimits) {
    this.#name = name;
    this.#users = users;
    this.#total = total;
    this.#limits = limits;
  }

  get connections(): number {
    return this.#use.connections;
  }

  open(): void {
    this.#users.set(this.#name, this);
    this.add("connections", 1);
  }

  /** One connection of the user has closed. After the last one, the user's account is removed. */
  close(): void {
    this.add("connections", -1);
    if (this.#use.connections === 0 && this.#users.get(this.#name) === this) this.#users.delete(this.#name);
  }

  add(what: Counted, count: number): void {
    this.#use[what] += count;
    this.#total[what] += count;
  }

  /** @param more how much is about to be added */
  reached(what: Counted, more = 0): FleetError | null {
    const check = (limit: LimitName, now: number, max: number | null) =>
      max !== null && now + more > max ? limitReached(limit, max) : null;
    return (
      check(what, this.#use[what], this.#limits.default[what]) ??
      check(`total.${what}`, this.#total[what], this.#limits.total[what])
    );
  }
}

/** The part of the user's limits that one connection takes up. */
export class Share implements Disposable {
  readonly #account: Account;
  #requests = 0;
  #requestBytes = 0;
  #bufferedBytes = 0;
  #released = false;

  constructor(account: Account) {
    this.#account = account;
  }

  /** Counts a request that has arrived. The door keeps the request in memory until it is answered. */
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

  get overBytes(): FleetError | null {
    return this.#account.reached("unreadBytes");
  }

  /** Subtracts everything that the connection has counted from the user's account, because the connection has ended. */
  release(): void {
    this.#count(-this.#requests, -this.#requestBytes, -this.#bufferedBytes);
    if (!this.#released) this.#account.close();
    this.#released = true;
  }

  [Symbol.dispose](): void {
    this.release();
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
