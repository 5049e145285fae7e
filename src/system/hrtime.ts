/**
 * The milliseconds of `process.hrtime`, which is one clock for all processes of a machine. On Linux, it is
 * CLOCK_MONOTONIC (clock_gettime(2)), which stops while the machine sleeps. On macOS, libuv uses
 * `mach_continuous_time`, which does not stop.
 */
export function hrtimeMs(): number {
  const [seconds, nanoseconds] = process.hrtime();
  return seconds * 1000 + nanoseconds / 1e6;
}
