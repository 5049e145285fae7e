import { randomUUID } from "node:crypto";
import { LimitEvents, type LimitEventsContext } from "../../accounts/limits.js";
import type { FleetError } from "../../base/errors.js";
import { refuseSuspended } from "../../base/usage.js";
import {
  FIXED_LIMITS,
  type Limited,
  type LimitName,
  type LimitSource,
  type Limits,
  limitReached,
  type Reached,
} from "../../base/user-limits.js";
import type { Config } from "../../config/schema.js";
import type { Store } from "../../store/store.js";

/** The limited quantities that this process counts itself. The store counts sessions. */
type Counted = Exclude<Limited, "sessions">;
type Use = Record<Counted, number>;
/** The limits of each user, and those of all users together. */
type AllLimits = Record<"default" | "total", Readonly<Record<Counted, number | null>>>;
/** The configured limits. Those that are missing are {@link FIXED_LIMITS}. */
type Configured = Pick<Limits, "connections"> & Partial<Limits>;

/** The connection limit of a user for whom the store has a record of limits. `max` is null without a limit. */
interface OwnLimit {
  max: number | null;
  source: LimitSource;
}

/** A limit that a user has exceeded, or would exceed with one more connection. */
interface Exceeded extends Pick<Reached, "source" | "used"> {
  limit: LimitName;
  max: number;
}

export interface SharesContext extends LimitEventsContext {
  config: Pick<Config, "limits">;
  store: Pick<Store, "hosts" | "limits">;
}

const NOTHING: Readonly<Use> = { connections: 0, requestsInFlight: 0, unreadBytes: 0 };

/** Counts the load of each user, and of all users together, on this process: its front door and its HTTP API. */
export class Shares {
  readonly #limits: AllLimits;
  readonly #users = new Map<string, Account>();
  readonly #total: Use = { ...NOTHING };
  readonly #context: SharesContext | null;

  /**
   * @param context if null, the recorded limits of single users do not apply, and only connections of this process
   * count
   */
  constructor(limits: { default: Configured; total: Configured }, context: SharesContext | null = null) {
    this.#limits = {
      default: { ...FIXED_LIMITS.default, ...limits.default },
      total: { ...FIXED_LIMITS.total, ...limits.total },
    };
    this.#context = context;
  }

  /**
   * Counts one more connection of a user, if this user's limit allows it.
   *
   * @param everywhere whether the user's connections at all hosts count together. A relayed connection counts at the
   * host that relays it.
   * @throws FleetError `FLEET_LIMIT_REACHED`, `FLEET_USER_SUSPENDED`, and the errors of the store.
   */
  async admitUser(user: string, { relayed, everywhere }: { relayed: boolean; everywhere: boolean }): Promise<Share> {
    if (this.#context === null) return this.admit(user, relayed);
    const { store } = this.#context;
    const own = await this.#ownLimit(user, this.#context);
    const share = this.admit(user, relayed, own);
    const most = own === undefined ? this.#limits.default.connections : own.max;
    if (!everywhere || relayed || most === null || store.hosts === null) return share;
    const slot = { user, kind: "connection", id: randomUUID() } as const;
    try {
      const answer = await store.limits.take({ ...slot, most, perMinute: null });
      if (!answer.granted) throw this.#refusal(user, { ...own, limit: "connections", max: most, used: answer.used });
    } catch (error) {
      share.release();
      throw error;
    }
    share.onRelease(() => void store.limits.giveBack(slot, true));
    return share;
  }

  async #ownLimit(user: string, { store, config }: SharesContext): Promise<OwnLimit | undefined> {
    const record = await store.limits.read(user);
    refuseSuspended(record);
    if (record === null) return undefined;
    const { effectiveLimits } = await import("../../accounts/limits.js");
    const { limits, sources } = effectiveLimits(config.limits, record);
    return { max: limits.connections, source: sources.connections };
  }

  /**
   * Counts one more connection of a user.
   *
   * @param relayed whether the client claims that another front door relays it. Such connections count in a separate
   * account of the user, because the client also counts at the other door, and because nothing proves the claim.
   */
  admit(user: string, relayed: boolean, own?: OwnLimit): Share {
    // A user id cannot contain a colon, so this name is never that of another user.
    const name = relayed ? `relayed:${user}` : user;
    const account = this.#users.get(name) ?? new Account(name, this.#users, this.#total, this.#limits);
    const exceeded = account.exceeded("connections", 1, own);
    if (exceeded !== null) throw this.#refusal(user, exceeded);
    account.open();
    return new Share(account);
  }

  #refusal(user: string, exceeded: Exceeded): FleetError {
    if (this.#context !== null) LimitEvents.of(this.#context).reached(user, exceeded.limit, exceeded.max);
    return refusalOf(exceeded);
  }

  /** How many connections the user has open here. */
  connectionsOf(user: string): number {
    return this.#users.get(user)?.connections ?? 0;
  }
}

/** The load that one user puts on this process. A user's relayed connections have a separate account. */
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

  /** @returns the limit that the load exceeds, or would exceed if `more` is added; null if there is none */
  exceeded(what: Counted, more = 0, own?: OwnLimit): Exceeded | null {
    const check = (limit: LimitName, now: number, max: number | null, source: LimitSource = "default") =>
      max !== null && now + more > max ? { limit, max, source } : null;
    const { max, source } = own ?? { max: this.#limits.default[what], source: "default" };
    return (
      check(what, this.#use[what], max, source) ?? check(`total.${what}`, this.#total[what], this.#limits.total[what])
    );
  }
}

function refusalOf({ limit, max, ...facts }: Exceeded): FleetError {
  return limitReached(limit, max, facts);
}

/** The part of the user's limits that one connection takes up. */
export class Share implements Disposable {
  readonly #account: Account;
  #requests = 0;
  #requestBytes = 0;
  #bufferedBytes = 0;
  #released = false;
  #onRelease: (() => void) | undefined;

  constructor(account: Account) {
    this.#account = account;
  }

  onRelease(action: () => void): void {
    this.#onRelease = action;
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
    return this.#over("requestsInFlight");
  }

  get overBytes(): FleetError | null {
    return this.#over("unreadBytes");
  }

  #over(what: Counted): FleetError | null {
    const exceeded = this.#account.exceeded(what);
    return exceeded === null ? null : refusalOf(exceeded);
  }

  /** Call this when the connection has ended. Removes it, and its requests and bytes, from the user's account. */
  release(): void {
    this.#count(-this.#requests, -this.#requestBytes, -this.#bufferedBytes);
    if (!this.#released) {
      this.#account.close();
      this.#onRelease?.();
    }
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
