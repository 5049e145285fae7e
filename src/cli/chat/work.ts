import { either } from "../../runtime/clock.js";
import { SignOfLife } from "./sign-of-life.js";
import type { LivePart, Window } from "./terminal/window.js";

/** How long work runs before it is shown, in milliseconds. */
const AFTER_MS = 1_000;

/** Shows that the chat works on something other than a turn, and for how long. */
export class WorkView implements LivePart {
  readonly #what: string;
  readonly #sign = new SignOfLife();

  constructor(what: string) {
    this.#what = what;
  }

  take(): string[] {
    return [];
  }

  live(columns: number, height: number): string[] {
    return this.#sign.ageMs < AFTER_MS ? [] : ["", this.#sign.row(this.#what, columns)].slice(-height);
  }
}

/** The window, in which the user can cancel work, and the signal that ends the chat. */
export interface Workplace {
  window: Window;
  signal: AbortSignal;
}

/** Runs an operation other than a turn, and shows it. @throws Cancelled if the user cancels it; the signal's reason */
export async function work<T>(
  { window, signal }: Workplace,
  what: string,
  run: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  return await window.working(new WorkView(what), async (cancelled) => {
    using stop = either(signal, cancelled);
    try {
      stop.signal.throwIfAborted();
      return await run(stop.signal);
    } catch (error) {
      // A cancelled operation may fail with any error, so throw the reason of the cancellation instead.
      throw stop.signal.aborted ? stop.signal.reason : error;
    }
  });
}
