import type { TokenStore } from "../store/ports.js";

/** The shortest time between two recorded uses of a token, in milliseconds. */
const EVERY_MS = 60_000;
/** How many tokens are remembered. A further token evicts the oldest, whose next use is then recorded at once. */
const MAX_TOKENS = 10_000;

interface Context {
  tokens: Pick<TokenStore, "used">;
  now(): Promise<number>;
}

/** Records when tokens were last used. Callers do not wait for the write, and ignore its failure. */
export class TokenUses {
  readonly #store: Context;
  readonly #clock: { now(): number };
  readonly #recordedAt = new Map<string, number>();

  /** @param clock replaced in tests */
  constructor(store: Context, clock: { now(): number } = performance) {
    this.#store = store;
    this.#clock = clock;
  }

  /** Records a use. @param everyMs the shortest time between two recorded uses of this token, in milliseconds */
  note(id: string, everyMs = EVERY_MS): void {
    const now = this.#clock.now();
    const before = this.#recordedAt.get(id);
    if (before !== undefined && now - before < everyMs) return;
    this.#recordedAt.delete(id);
    this.#recordedAt.set(id, now);
    const oldest = this.#recordedAt.keys().next().value;
    if (this.#recordedAt.size > MAX_TOKENS && oldest !== undefined) this.#recordedAt.delete(oldest);
    this.#record(id).catch(() => "the next use is recorded");
  }

  async #record(id: string): Promise<void> {
    await this.#store.tokens.used(id, new Date(await this.#store.now()).toISOString());
  }
}
