import type { TokenRecord } from "../model/token.js";

/** How long after it was made a passing token may be shown, in milliseconds. */
export const PASSING_MS = 60_000;

/**
 * The passing tokens that were shown to this process. Each is admitted once, even if somebody who may write to Redis puts its
 * record back. A token that is older than this process may have been shown to the one before it, so it is refused.
 */
export class PassingTokens {
  readonly #shownAt = new Map<string, number>();
  readonly #uptimeMs: () => number;

  /** @param uptimeMs how long this process has run, in milliseconds; replaced in tests */
  constructor(uptimeMs = () => process.uptime() * 1_000) {
    this.#uptimeMs = uptimeMs;
  }

  /** @param now by the clock of the store, which dated the record */
  admit({ id, createdAt }: Pick<TokenRecord, "id" | "createdAt">, now: number): boolean {
    for (const [known, at] of this.#shownAt) {
      if (now - at <= PASSING_MS) break;
      this.#shownAt.delete(known);
    }
    const ageMs = now - Date.parse(createdAt);
    if (!(ageMs <= Math.min(PASSING_MS, this.#uptimeMs())) || this.#shownAt.has(id)) return false;
    this.#shownAt.set(id, now);
    return true;
  }
}
