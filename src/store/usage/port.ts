import type { LedgerLine, UsagePart, UsageQuery } from "../../model/usage/usage.js";

/**
 * Names, each with the pseudonym that takes its place. A session may have the name of another user, whose name must stay where it
 * stands for the user.
 */
export interface Renaming {
  users: ReadonlyMap<string, string>;
  sessions: ReadonlyMap<string, string>;
}

/**
 * The ledger. Each line is counted once. Lines are first on the disk of this host, also with a store for many hosts, so that
 * neither the end of a process nor an outage of the store loses one.
 */
export interface UsageStore {
  /**
   * Appends lines. They outlive this process as soon as the call returns.
   *
   * @returns how many of the lines were appended. On a full disk, these may be the first few.
   * @throws FleetError `FLEET_STATE_UNWRITABLE` if no line was
   */
  append(lines: readonly LedgerLine[]): number;

  /**
   * Resolves when the lines of this host count for all hosts and are added up as far as that saves time, or when the store does
   * not answer. Never rejects.
   */
  settled(): Promise<void>;

  /** Adds up the lines of a time by user, model and the key of the query. */
  read(query: UsageQuery): Promise<UsagePart[]>;

  /**
   * The input and output tokens of a user, on all hosts, since the beginning of a day (UTC).
   * @param from a time of this day, in milliseconds since the epoch, at most 31 days ago
   */
  tokensSince(user: string, from: number): Promise<number>;

  /**
   * Replaces the names of a user and of the user's sessions. If this is interrupted, the same call finishes it. In a fleet of
   * several hosts, call it on each host.
   */
  rename(names: Renaming): Promise<void>;

  /** Deletes lines that are older than this, in milliseconds, and what killed processes left. */
  upkeep(keepMs: number): Promise<void>;
}
