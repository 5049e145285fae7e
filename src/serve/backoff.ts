/** The longest wait between two starts of a server that keeps ending, in milliseconds. */
const LONGEST_MS = 60_000;

/**
 * How long to wait before a server is started again that ended `crashes` times in a row, in milliseconds: not at all the
 * first time, then the base, doubled each time, of which a random half to whole, so that servers that ended together
 * do not come back together ("equal jitter", https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
 */
export function backoffMs(crashes: number, baseMs: number, random: () => number = Math.random): number {
  if (crashes <= 1) return 0;
  const full = Math.min(LONGEST_MS, baseMs * 2 ** Math.min(crashes - 2, 30));
  return full * (0.5 + random() / 2);
}
