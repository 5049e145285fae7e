import { setMaxListeners } from "node:events";
import { setTimeout as delay } from "node:timers/promises";

/** A limit on a wait; disposing it takes it off again. */
export interface Deadline extends Disposable {
  readonly signal: AbortSignal;
}

/**
 * Aborts after `ms` (never, if that is undefined), or together with `outer`, whichever is first.
 *
 * Not `AbortSignal.any([outer, AbortSignal.timeout(ms)])`: Node 20 holds the parts of such a signal weakly, so that a
 * garbage collection at the wrong moment makes it wait for ever (measured with 20.20: `test/runtime/deadline.test.ts`).
 */
export function deadline(ms: number | undefined, outer?: AbortSignal): Deadline {
  const controller = new AbortController();
  const timer =
    ms === undefined ? undefined : setTimeout(() => controller.abort(new TimeIsUp(`no answer within ${ms} ms`)), ms);
  timer?.unref();
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

/** Aborts together with whichever of the signals is first; disposing it lets go of both. */
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

/** What `work` gives, or the signal's reason if that aborts first; the work's own outcome is dropped then. */
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

/** Waits `ms`. @throws the signal's own reason as soon as that aborts, where Node's timers throw an `AbortError` of theirs. */
export async function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  if (signal !== undefined) setMaxListeners(0, signal);
  try {
    await delay(ms, undefined, { signal });
  } catch (error) {
    signal?.throwIfAborted();
    throw error;
  }
}

/** Why a {@link deadline} aborted by itself. */
class TimeIsUp extends Error {}

/** Whether a signal aborted since its time was up, not since somebody gave up: a {@link deadline}, or one of the platform's. */
export function isTimeout(reason: unknown): boolean {
  return reason instanceof TimeIsUp || (reason instanceof DOMException && reason.name === "TimeoutError");
}

/** One signal ends the waits of a whole fleet: Node warns of more than ten listeners on standard error, as of a leak. */
function follow(signal: AbortSignal, onAbort: () => void): void {
  setMaxListeners(0, signal);
  signal.addEventListener("abort", onAbort, { once: true });
}
