import type { ProviderConfig } from "@github/copilot-sdk";
import type { SessionsContext } from "../context.js";

/** The model provider during one use of a session. The model gateway serves the session until the disposal. */
export class UseModel implements Disposable {
  readonly #provider: SessionsContext["provider"];
  readonly #sessionId: string;
  readonly #kept: Disposable;
  #isGiven = false;

  constructor({ provider }: Pick<SessionsContext, "provider">, sessionId: string) {
    this.#provider = provider;
    this.#sessionId = sessionId;
    this.#kept = provider.keep(sessionId);
  }

  /** The server has got the provider, because this use has loaded the session. */
  given(): void {
    this.#isGiven = true;
  }

  /**
   * The provider that the server has to get before the prompt of a turn. Null if it has got it during this use. Another
   * process may have taken the last turn, and its model gateway ends with that process.
   */
  async missing(): Promise<ProviderConfig | null> {
    if (this.#isGiven) return null;
    this.#isGiven = true;
    return await this.#provider.of(this.#sessionId);
  }

  [Symbol.dispose](): void {
    this.#kept[Symbol.dispose]();
  }
}
