import type { LedgerLine, UsagePart, UsageQuery } from "../../model/usage/usage.js";

/**
 * The names to replace, each with its pseudonym. Users and sessions have separate maps, because a session may have the
 * same name as another user, and that user's name must stay.
 */
export interface Renaming {
  users: ReadonlyMap<string, string>;
  sessions: ReadonlyMap<string, string>;
}

/**
 * The ledger. Each line is counted once. Lines are written to this host's disk first, even if the store serves many
 * hosts, so that neither the end of a process nor an outage of the store loses a line.
 */
export interface UsageStore {
  /**
   * Appends lines. Once the call returns, they survive the end of this process.
   *
   * @returns how many of the lines were appended. On a full disk, these may be only the first few.
   * @throws FleetError `FLEET_STATE_UNWRITABLE` if no line was appended
   */
  append(lines: readonly LedgerLine[]): number;

  /**
   * Resolves when this host's lines count on all hosts. May also add lines up, so that the next query is fast. Also
   * resolves if the store does not answer. Never rejects.
   */
  settled(): Promise<void>;

  /** Adds up the lines in the query's period. Each part of the result has one user, one model and one key (`by`). */
  read(query: UsageQuery): Promise<UsagePart[]>;

  /**
   * The input and output tokens of a user, on all hosts, since the start of a day (UTC).
   * @param from a time on this day, in milliseconds since the epoch, at most 31 days ago
   */
  tokensSince(user: string, from: number): Promise<number>;

  /**
   * Replaces the names of a user and of the user's sessions in all lines. If this is interrupted, the same call
   * finishes it. In a fleet of several hosts, call it on each host.
   */
  rename(names: Renaming): Promise<void>;

  /** Deletes lines that are older than `keepMs` milliseconds, and files that killed processes left. */
  upkeep(keepMs: number): Promise<void>;
}
