/**
 * The milliseconds of `process.hrtime`, which is one clock for all processes of a machine: CLOCK_MONOTONIC
 * (clock_gettime(2)), which stops while the machine sleeps.
 */
export function hrtimeMs(): number {
  const [seconds, nanoseconds] = process.hrtime();
  return seconds * 1000 + nanoseconds / 1e6;
}
