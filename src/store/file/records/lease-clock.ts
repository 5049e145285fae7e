import { readFileSync } from "node:fs";
import { FleetError } from "../../../errors.js";

/**
 * A time on the clock for leases, which counts from the start of the machine. All processes of the machine share this
 * clock, and nobody can set it. It stops while the machine sleeps, and so does every holder. (On Linux,
 * `process.hrtime` is CLOCK_MONOTONIC, clock_gettime(2).) Two times are comparable only if their boot ids are the same.
 * So no lease survives a restart of the machine, and neither does any holder.
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
  const [seconds, nanoseconds] = process.hrtime();
  return { bootId: bootId(), monotonicMs: seconds * 1000 + nanoseconds / 1e6, wallMs: Date.now() };
}

export function after(instant: Instant, ms: number): Moment {
  return { bootId: instant.bootId, monotonicMs: instant.monotonicMs + ms };
}

/** Milliseconds from `instant` to `moment`; 0 if it has passed. */
export function remaining(moment: Moment, instant: Instant): number {
  if (moment.bootId !== instant.bootId) return 0;
  return Math.max(0, moment.monotonicMs - instant.monotonicMs);
}

let boot: string | undefined;

function bootId(): string {
  if (process.platform !== "linux") {
    throw new FleetError("FLEET_PLATFORM_UNSUPPORTED", `Leases work on Linux only, not on ${process.platform}.`, {
      suggestions: ["Run it in a Linux container or virtual machine."],
    });
  }
  boot ??= readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  return boot;
}
