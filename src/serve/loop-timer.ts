/** Times the rounds of the supervisor's loop. A change of a server begins the next round early. */
export class LoopTimer {
  #wakeNow: () => void = () => undefined;
  #isDue = false;

  /** Begins the next round at once. */
  wake(): void {
    this.#isDue = true;
    this.#wakeNow();
  }

  /** Begins the next round after `ms` milliseconds at the latest. */
  wakeAfter(ms: number): void {
    setTimeout(() => this.wake(), ms).unref();
  }

  /** Waits for the next round, at most `ms` milliseconds. */
  async next(ms: number): Promise<void> {
    if (!this.#isDue) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, ms);
        this.#wakeNow = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    this.#isDue = false;
    this.#wakeNow = () => undefined;
  }
}
