import { setMaxListeners } from "node:events";
import { setTimeout as delay } from "node:timers/promises";

/** A signal that never aborts. */
export const NEVER: AbortSignal = new AbortController().signal;

/** A clock in milliseconds that never goes back, such as `performance`. */
export interface Clock {
  now(): number;
}

/** A signal that ends a wait. Dispose it after the wait to remove its timer and listeners. */
export interface Deadline extends Disposable {
  readonly signal: AbortSignal;
}

/**
 * Aborts after `ms` milliseconds or when `outer` aborts, whichever is first. Without `ms`, only `outer` counts. The timer
 * keeps the process alive: without it, a process whose connection has closed would end silently while it waits.
 *
 * Do not use `AbortSignal.any([outer, AbortSignal.timeout(ms)])`: Node 20 holds the parts of such a signal weakly, so a
 * garbage collection at the wrong moment makes it wait forever (measured with 20.20: `test/runtime/deadline.test.ts`).
 */
export function deadline(ms: number | undefined, outer?: AbortSignal): Deadline {
  const controller = new AbortController();
  const timer =
    ms === undefined ? undefined : setTimeout(() => controller.abort(new TimeIsUp(`no answer within ${ms} ms`)), ms);
  const onAbort = () => controller.abort(outer?.reason);
  if (outer?.aborted === true) onAbort();
  if (outer !== undefined) follow(outer, onAbort);
  return {
    signal: controller.signal,
    [Symbol.dispose]: () => {
      clearTimeout(timer);
      outer?.removeEventListener("abort", onAbort);
    },
  };
}

/** Aborts when the first of the two signals aborts. Dispose it to remove its listeners. */
export function either(first: AbortSignal | undefined, second: AbortSignal | undefined): Deadline {
  const controller = new AbortController();
  const abortWith = (signal: AbortSignal | undefined) => {
    const onAbort = () => controller.abort(signal?.reason);
    if (signal?.aborted === true) onAbort();
    if (signal !== undefined) follow(signal, onAbort);
    return () => signal?.removeEventListener("abort", onAbort);
  };
  const letGo = [abortWith(first), abortWith(second)];
  return {
    signal: controller.signal,
    [Symbol.dispose]: () => {
      for (const release of letGo) release();
    },
  };
}

/**
 * Settles like `work`, or rejects with the signal's reason if the signal aborts first. The outcome of `work` is then
 * dropped.
 */
export async function abortable<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  let onAbort = (): void => undefined;
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(signal.reason);
  });
  follow(signal, onAbort);
  if (signal.aborted) onAbort();
  try {
    return await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}

/** Waits `ms` milliseconds. @throws the signal's reason when the signal aborts. (Node's timers throw an `AbortError`.) */
export async function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  if (signal !== undefined) setMaxListeners(0, signal);
  try {
    await delay(ms, undefined, { signal });
  } catch (error) {
    signal?.throwIfAborted();
    throw error;
  }
}

/** The reason of a {@link deadline} that aborted because its time was up. */
class TimeIsUp extends Error {}

/**
 * Whether a signal aborted because its time was up, and not because somebody gave up. The signal may be a {@link deadline}
 * or an `AbortSignal.timeout`.
 */
export function isTimeout(reason: unknown): boolean {
  return reason instanceof TimeIsUp || (reason instanceof DOMException && reason.name === "TimeoutError");
}

/** One signal may end all waits of a fleet. With more than ten listeners, Node prints a leak warning to standard error. */
function follow(signal: AbortSignal, onAbort: () => void): void {
  setMaxListeners(0, signal);
  signal.addEventListener("abort", onAbort, { once: true });
}
