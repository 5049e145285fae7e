import { readFileSync } from "node:fs";
import { FleetError } from "../../errors.js";

/**
 * What a lease is measured by: time since the machine was started, which all of its processes share and which nobody can
 * set. (`process.hrtime` is CLOCK_MONOTONIC on Linux, clock_gettime(2). It stands still while the machine sleeps, and so
 * does every holder.) It says nothing about another boot, hence the boot's id: no process lived through a restart, so
 * neither did a lease.
 */
export interface Instant {
  bootId: string;
  /** Milliseconds since the boot. */
  monotonicMs: number;
  /** Milliseconds since the epoch, for people, and for fences. */
  wallMs: number;
}

/** A time on the clock above. */
export interface Moment {
  bootId: string;
  monotonicMs: number;
}

export function now(): Instant {
  const [seconds, nanoseconds] = process.hrtime();
  return { bootId: bootId(), monotonicMs: seconds * 1000 + nanoseconds / 1e6, wallMs: Date.now() };
}

export function after(instant: Instant, ms: number): Moment {
  return { bootId: instant.bootId, monotonicMs: instant.monotonicMs + ms };
}

/** Milliseconds from `instant` to `moment`; 0 when it has passed. */
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
