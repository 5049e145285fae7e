import { setMaxListeners } from "node:events";
import { setTimeout as delay } from "node:timers/promises";

/** Measures time and waits. Tests replace it with a clock that they advance. */
export interface Clock {
  /** Milliseconds from a starting point that differs between processes. Never decreases. */
  now(): number;
  /**
   * Waits `ms` milliseconds.
   *
   * @throws the signal's reason if the signal aborts. (Node's own timers would throw an `AbortError`.)
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
    // Many waits may listen to one signal. Lift the limit of ten listeners, above which Node prints a leak warning.
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

export const NEVER: AbortSignal = new AbortController().signal;

/** A signal that ends a wait. Dispose it after the wait to remove its timer and listeners. */
export interface Deadline extends Disposable {
  readonly signal: AbortSignal;
}

/**
 * Returns a signal that aborts after `ms` milliseconds (never if `ms` is undefined), or when one of the `others`
 * aborts. The timer keeps the process alive. Otherwise, a process whose only connection has closed would exit silently
 * during the wait.
 *
 * Do not use `AbortSignal.any([outer, AbortSignal.timeout(ms)])`: on Node 20, a garbage collection can prevent such a
 * signal from ever aborting (measured with 20.20).
 */
export function deadline(ms: number | undefined, ...others: (AbortSignal | undefined)[]): Deadline {
  return deadlineOn(systemClock, ms, ...others);
}

/** Like {@link deadline}, but measures the time with `clock`. */
export function deadlineOn(clock: Clock, ms: number | undefined, ...others: (AbortSignal | undefined)[]): Deadline {
  const controller = new AbortController();
  const end = () => controller.abort(new TimeIsUp(`no answer within ${ms} ms`));
  const cancel = ms === undefined ? undefined : clock.after(ms, end, { ref: true });
  const following = others.map((other) => other && follow(other, () => controller.abort(other.reason)));
  return {
    signal: controller.signal,
    [Symbol.dispose]: () => {
      cancel?.();
      for (const unfollow of following) unfollow?.();
    },
  };
}

/** Returns a signal that aborts as soon as either of the two signals aborts. Dispose it to remove its listeners. */
export function either(first: AbortSignal | undefined, second: AbortSignal | undefined): Deadline {
  return deadline(undefined, first, second);
}

/** Settles like `work`, or rejects with the signal's reason if the signal aborts first. */
export async function abortable<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  let unfollow = (): void => undefined;
  const aborted = new Promise<never>((_, reject) => {
    unfollow = follow(signal, () => reject(signal.reason));
  });
  try {
    return await Promise.race([work, aborted]);
  } finally {
    unfollow();
  }
}

/** Waits `ms` milliseconds on the {@link systemClock}. Rejects with the signal's reason if the signal aborts. */
export async function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  await systemClock.wait(ms, { signal });
}

class TimeIsUp extends Error {}

/**
 * Whether `reason`, a signal's abort reason, shows that the time of a {@link deadline} or `AbortSignal.timeout` was up.
 */
export function isTimeout(reason: unknown): boolean {
  return reason instanceof TimeIsUp || (reason instanceof DOMException && reason.name === "TimeoutError");
}

/**
 * Calls `onAbort` when the signal aborts, or at once if it has already aborted. Returns a function that stops
 * listening.
 */
function follow(signal: AbortSignal, onAbort: () => void): () => void {
  // Many waits may listen to one signal. Lift the limit of ten listeners, above which Node prints a leak warning.
  setMaxListeners(0, signal);
  signal.addEventListener("abort", onAbort, { once: true });
  if (signal.aborted) onAbort();
  return () => signal.removeEventListener("abort", onAbort);
}

/**
 * Returns a generator that ends at once when the caller stops reading, even while it waits for a value. A plain
 * generator would end only after it has received that value.
 *
 * @param begin yields the values until the signal that it receives aborts. That signal aborts when `signal` aborts, or
 * when the caller stops reading.
 */
export function endingAtOnce<T>(
  signal: AbortSignal | undefined,
  begin: (signal: AbortSignal) => AsyncIterable<T>,
): AsyncGenerator<T, void, undefined> {
  const over = new AbortController();
  const values = valuesUntil(over, signal, begin);
  const end = values.return.bind(values);
  values.return = async (value) => {
    over.abort();
    return await end(value);
  };
  return values;
}

async function* valuesUntil<T>(
  over: AbortController,
  signal: AbortSignal | undefined,
  begin: (signal: AbortSignal) => AsyncIterable<T>,
): AsyncGenerator<T, void, undefined> {
  using ending = either(signal, over.signal);
  try {
    yield* begin(ending.signal);
  } catch (error) {
    if (!over.signal.aborted) throw error;
  } finally {
    over.abort();
  }
}
