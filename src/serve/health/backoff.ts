/** The longest wait between two starts of a server that keeps ending, in milliseconds. */
const LONGEST_MS = 60_000;

/**
 * How long to wait, in milliseconds, before we start a server again that ended `crashes` times in a row. The first time
 * there is no wait. Then the wait is the base, and it doubles each time. A random factor between 0.5 and 1 keeps servers
 * that ended together from coming back together ("equal jitter",
 * https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
 */
export function backoffMs(crashes: number, baseMs: number, random: () => number = Math.random): number {
  if (crashes <= 1) return 0;
  const full = Math.min(LONGEST_MS, baseMs * 2 ** Math.min(crashes - 2, 30));
  return full * (0.5 + random() / 2);
}
