/** How long a terminal may take to report the cursor's position, in milliseconds. Some terminals never report it. */
const FIRST_MS = 1_000;
/** The longer limit for a terminal that has reported a position before, because it may only be slow. */
const LATER_MS = 5_000;

/** Waits for the terminal's report of the cursor's position, which the chat needs after a resize. */
export class CursorReport implements Disposable {
  #timer: NodeJS.Timeout | null = null;
  #resolve: (column: number | undefined) => void = () => undefined;
  #isUsual = false;

  get isAwaited(): boolean {
    return this.#timer !== null;
  }

  /**
   * Waits for the next report. Resolves with the column of the cursor; with undefined if the report does not arrive in
   * time. Never resolves if `next` or `cancel` is called first.
   */
  async next(): Promise<number | undefined> {
    this.cancel();
    return await new Promise((resolve) => {
      this.#resolve = resolve;
      this.#timer = setTimeout(() => this.#end(undefined), this.#isUsual ? LATER_MS : FIRST_MS);
    });
  }

  /** Call this when a report arrives, even if it is late. */
  arrived(column: number): void {
    this.#isUsual = true;
    if (this.isAwaited) this.#end(column);
  }

  cancel(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }

  [Symbol.dispose](): void {
    this.cancel();
  }

  #end(column: number | undefined): void {
    this.cancel();
    this.#resolve(column);
  }
}
