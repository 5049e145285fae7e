import type { Clock } from "../runtime/clock.js";

/** Times the rounds of the supervisor's loop. A change of a server starts the next round early. */
export class LoopTimer {
  readonly #clock: Clock;
  #wakeNow: () => void = () => undefined;
  #isDue = false;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Starts the next round at once. */
  wake(): void {
    this.#isDue = true;
    this.#wakeNow();
  }

  /** Starts the next round after `ms` milliseconds at the latest. */
  wakeAfter(ms: number): void {
    this.#clock.after(ms, () => this.wake());
  }

  /** Waits for the next round, at most `ms` milliseconds. */
  async next(ms: number): Promise<void> {
    if (!this.#isDue) {
      await new Promise<void>((resolve) => {
        // `ref`: this timer keeps the process alive.
        const cancel = this.#clock.after(ms, resolve, { ref: true });
        this.#wakeNow = () => {
          cancel();
          resolve();
        };
      });
    }
    this.#isDue = false;
    this.#wakeNow = () => undefined;
  }
}
