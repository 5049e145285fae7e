import type { ServeContext } from "./context.js";
import { countFailure, logFailure } from "./failures.js";

/** The failures of the regular checks, and the texts that we log when the checks succeed again. */
const WELL_AGAIN = {
  "the servers could not be checked": "the servers can be checked again",
  "the use of the servers could not be checked": "the servers can be checked again",
  "the shared storage is not available": "the shared storage is available again",
} as const;

/** The regular checks. Logs a lasting failure, such as a full disk, once and not every second. */
export class RegularChecks {
  readonly #context: Pick<ServeContext, "log" | "metrics">;
  /** The error messages of the checks that fail at the moment. */
  readonly #failing = new Map<keyof typeof WELL_AGAIN, string>();

  constructor(context: Pick<ServeContext, "log" | "metrics">) {
    this.#context = context;
  }

  /** Runs one check. Resolves with null when it fails. */
  async run<T>(failure: keyof typeof WELL_AGAIN, check: () => Promise<T>): Promise<T | null> {
    try {
      const result = await check();
      if (this.#failing.delete(failure)) this.#context.log("info", WELL_AGAIN[failure]);
      return result;
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      if (this.#failing.get(failure) === message) countFailure(this.#context, error);
      else logFailure(this.#context, failure, error);
      this.#failing.set(failure, message);
      return null;
    }
  }

  /** The checks that fail at the moment, each as a sentence for people. */
  get failing(): string[] {
    return [...this.#failing].map(([failure, message]) => `${failure}: ${message}`);
  }
}
