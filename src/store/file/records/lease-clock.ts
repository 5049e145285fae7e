import { system } from "../../../system/system.js";

/**
 * A time on the clock for leases, which counts from the start of the machine. All processes of the machine share this clock,
 * and nobody can set it. Two times are comparable only if their boot ids are the same. So no lease survives a restart of the
 * machine. Its holder does not survive the restart either.
 */
export interface Instant {
  bootId: string;
  /** Milliseconds since boot. */
  monotonicMs: number;
  /** Milliseconds since the epoch, for people and for fences. */
  wallMs: number;
}

export type Moment = Omit<Instant, "wallMs">;

export function now(): Instant {
  const { clock } = system();
  return { bootId: clock.bootId(), monotonicMs: clock.nowMs(), wallMs: Date.now() };
}

export function after(instant: Instant, ms: number): Moment {
  return { bootId: instant.bootId, monotonicMs: instant.monotonicMs + ms };
}

/** Milliseconds from `instant` to `moment`; 0 if `moment` has passed. */
export function remaining(moment: Moment, instant: Instant): number {
  if (moment.bootId !== instant.bootId) return 0;
  return Math.max(0, moment.monotonicMs - instant.monotonicMs);
}
