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
  /** Calls `action` after `ms` milliseconds. @returns a function that cancels the call. */
  after(ms: number, action: () => void, options?: Pick<WaitOptions, "ref">): () => void;
}

export interface WaitOptions {
  signal?: AbortSignal | undefined;
  /** Whether the timer keeps the process alive. Default: true for `wait`, false for `after`. */
  ref?: boolean;
}

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
  after(ms, action, { ref = false } = {}) {
    const timer = setTimeout(action, ms);
    if (!ref) timer.unref();
    return () => clearTimeout(timer);
  },
};
