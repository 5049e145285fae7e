import type { TokenRecord } from "../model/token.js";

/** How long after its creation a passing token (a token for one connection) can be shown, in milliseconds. */
export const PASSING_MS = 60_000;

/**
 * Admits each passing token once, even if somebody with write access to Redis restores its record. Refuses a token that
 * is older than this process, because it may have been shown to the process that ran here before.
 */
export class PassingTokens {
  readonly #shownAt = new Map<string, number>();
  readonly #uptimeMs: () => number;

  /** @param uptimeMs how long this process has run, in milliseconds; replaced in tests */
  constructor(uptimeMs = () => process.uptime() * 1_000) {
    this.#uptimeMs = uptimeMs;
  }

  /**
   * Whether the token is admitted. Remembers an admitted token, so that it is refused the next time. @param now the
   * time by the store's clock, which also set `createdAt`; in milliseconds
   */
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
