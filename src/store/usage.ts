import type { LedgerLine, UsagePart, UsageQuery } from "../base/usage.js";
import type { SqliteLedger } from "./sqlite/ledger.js";

/** The ledger of all hosts. */
interface SharedLedger extends Pick<SqliteLedger, "read" | "tokensSince" | "rename" | "deleteBefore"> {
  append(lines: readonly LedgerLine[]): Promise<void>;
}

/** How long after a line the process sends it to Redis, in milliseconds. */
const SOON_MS = 200;
/** How many lines are sent at once. */
const AT_ONCE = 500;

/**
 * The names to replace, each with its pseudonym. Users and sessions have separate maps, because a session may have the
 * same name as another user, and that user's name must stay.
 */
export interface Renaming {
  users: ReadonlyMap<string, string>;
  sessions: ReadonlyMap<string, string>;
}

/**
 * The ledger. Each line is counted once. In a fleet that shares a Redis, this host's file only keeps the lines that
 * Redis does not have yet. So neither the end of a process nor an outage of Redis loses a line.
 */
export class UsageTable {
  readonly #local: SqliteLedger;
  readonly #shared: SharedLedger | null;
  #sending: Promise<void> = Promise.resolve();
  #soon: NodeJS.Timeout | undefined;
  /** Appends the lines that wait in this process. Called before the lines are read or sent. Must not throw. */
  appendWaiting: () => void = () => undefined;

  /** @param shared null if the fleet has one host */
  constructor(local: SqliteLedger, shared: SharedLedger | null) {
    this.#local = local;
    this.#shared = shared;
  }

  /**
   * Appends lines. Once the call returns, they survive the end of this process.
   *
   * @returns how many of the lines were appended. On a full disk, these may be only the first few.
   * @throws FleetError `FLEET_STATE_UNWRITABLE` if no line was appended
   */
  append(lines: readonly LedgerLine[]): number {
    this.#local.append(lines);
    if (this.#shared !== null) this.#soon ??= setTimeout(() => void this.settled(), SOON_MS).unref();
    return lines.length;
  }

  /**
   * Resolves when this host's lines count on all hosts. May also add lines up, so that the next query is fast. Also
   * resolves if the store does not answer. Never rejects.
   */
  async settled(): Promise<void> {
    await this.#send().catch(() => "the next call sends them");
  }

  /** Adds up the lines in the query's period. Each part of the result has one user, one model and one key (`by`). */
  async read(query: UsageQuery): Promise<UsagePart[]> {
    await this.settled();
    return await this.#ledger.read(query);
  }

  /**
   * The input and output tokens of a user, on all hosts, since the start of a day (UTC).
   * @param from a time on this day, in milliseconds since the epoch, at most 31 days ago
   */
  async tokensSince(user: string, from: number): Promise<number> {
    await this.settled();
    return await this.#ledger.tokensSince(user, from);
  }

  /**
   * Replaces the names of a user and of the user's sessions in all lines. If this is interrupted, the same call
   * finishes it. In a fleet of several hosts, call it on each host.
   */
  async rename(names: Renaming): Promise<void> {
    // Otherwise a line that is sent later would bring a name back.
    await this.#send();
    await this.#ledger.rename(names);
  }

  /** Deletes lines that are older than `keepMs` milliseconds, and files that killed processes left. */
  async upkeep(keepMs: number): Promise<void> {
    await this.settled();
    await this.#ledger.deleteBefore(Date.now() - keepMs);
  }

  async close(): Promise<void> {
    this.appendWaiting();
    // This host may never run another process, so the last lines must not wait for one.
    if (this.#soon !== undefined) await this.settled();
    await this.#sending.catch(() => "the next process sends them");
    await this.#local.close();
  }

  get #ledger(): SqliteLedger | SharedLedger {
    return this.#shared ?? this.#local;
  }

  /** Sends this host's lines to Redis, one batch after the other. Redis ignores lines that it already has. */
  async #send(): Promise<void> {
    this.appendWaiting();
    const shared = this.#shared;
    if (shared === null) return;
    clearTimeout(this.#soon);
    this.#soon = undefined;
    this.#sending = this.#sending
      .catch(() => undefined)
      .then(async () => {
        for (;;) {
          const { lines, last } = await this.#local.oldest(AT_ONCE);
          if (lines.length === 0) return;
          await shared.append(lines);
          await this.#local.deleteUntil(last);
        }
      });
    await this.#sending;
  }
}
