import { setMaxListeners } from "node:events";
import { setTimeout as delay } from "node:timers/promises";

/** Measures time and waits. Tests replace it by a clock that they move on. */
export interface Clock {
  /** Milliseconds that never go back. They count from a moment that differs between processes. */
  now(): number;
  /**
   * Waits `ms` milliseconds.
   *
   * @throws the signal's reason when the signal aborts. (Node's timers throw an `AbortError`.)
   */
  wait(ms: number, options?: WaitOptions): Promise<void>;
  /** Calls `action` after `ms` milliseconds, without keeping the process alive. @returns a function that cancels this. */
  after(ms: number, action: () => void): () => void;
}

export interface WaitOptions {
  signal?: AbortSignal | undefined;
  /** Whether the wait keeps the process alive. Default: true. */
  ref?: boolean;
}

/** The clock of this machine. */
export const systemClock: Clock = {
  now: () => performance.now(),
  async wait(ms, { signal, ref = true } = {}) {
    // One signal may end all waits of a fleet. With more than ten listeners, Node prints a leak warning.
    if (signal !== undefined) setMaxListeners(0, signal);
    try {
      await delay(ms, undefined, { signal, ref });
    } catch (error) {
      signal?.throwIfAborted();
      throw error;
    }
  },
  after(ms, action) {
    const timer = setTimeout(action, ms).unref();
    return () => clearTimeout(timer);
  },
};
