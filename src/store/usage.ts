import type { LedgerLine, UsagePart, UsageQuery } from "../base/usage.js";
import type { Renaming, UsageStore } from "./ports.js";
import type { RedisLedger } from "./redis/ledger.js";
import type { SqliteLedger } from "./sqlite/ledger.js";

/** How long after a line the process sends it to Redis, in milliseconds. */
const SOON_MS = 200;
/** How many lines are sent at once. */
const AT_ONCE = 500;

/**
 * The ledger. In a fleet that shares a Redis, this host's file only keeps the lines that Redis does not have yet. So neither the
 * end of a process nor an outage of Redis loses a line.
 */
export class Usage implements UsageStore {
  readonly #local: SqliteLedger;
  readonly #shared: RedisLedger | null;
  #sending: Promise<void> = Promise.resolve();
  #soon: NodeJS.Timeout | undefined;

  /** @param shared null if the fleet has one host */
  constructor(local: SqliteLedger, shared: RedisLedger | null) {
    this.#local = local;
    this.#shared = shared;
  }

  append(lines: readonly LedgerLine[]): number {
    this.#local.append(lines);
    if (this.#shared !== null) this.#soon ??= setTimeout(() => void this.settled(), SOON_MS).unref();
    return lines.length;
  }

  async settled(): Promise<void> {
    await this.#send().catch(() => "the next call sends them");
  }

  async read(query: UsageQuery): Promise<UsagePart[]> {
    await this.settled();
    return await this.#ledger.read(query);
  }

  async tokensSince(user: string, from: number): Promise<number> {
    await this.settled();
    return await this.#ledger.tokensSince(user, from);
  }

  async rename(names: Renaming): Promise<void> {
    // Otherwise a line that is sent later would bring a name back.
    await this.#send();
    await this.#ledger.rename(names);
  }

  async upkeep(keepMs: number): Promise<void> {
    await this.settled();
    await this.#ledger.deleteBefore(Date.now() - keepMs);
  }

  async close(): Promise<void> {
    clearTimeout(this.#soon);
    await this.#sending.catch(() => "the next process sends them");
    await this.#local.close();
  }

  get #ledger(): SqliteLedger | RedisLedger {
    return this.#shared ?? this.#local;
  }

  /** Sends this host's lines to Redis, one batch after the other. Redis ignores lines that it already has. */
  async #send(): Promise<void> {
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
