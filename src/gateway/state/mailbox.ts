/** A queue between two parts of the door: one puts work in, the other takes it out. Only one taker may wait. */
export class Mailbox<T> {
  readonly #items: T[] = [];
  #closed = false;
  #wake: (() => void) | undefined;

  put(item: T): void {
    this.#items.push(item);
    this.#wake?.();
  }

  /** Resolves with the next item; with undefined once the mailbox is empty and closed. */
  async take(): Promise<T | undefined> {
    while (this.#items.length === 0 && !this.#closed) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return this.#items.shift();
  }

  /** The taker gets what is left, and then undefined. */
  close(): void {
    this.#closed = true;
    this.#wake?.();
  }
}
