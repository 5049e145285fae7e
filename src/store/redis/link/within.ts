import { Interruption } from "./failures.js";

/**
 * Resolves with the result of `work`, whose outcome is ignored after `until`.
 *
 * @param until The deadline, by `performance.now()`.
 * @throws Interruption at the deadline.
 */
export async function within<T>(work: Promise<T>, until: number): Promise<T> {
  const ms = Math.max(0, until - performance.now());
  let timer: NodeJS.Timeout | undefined;
  const over = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Interruption("no answer in time")), ms);
  });
  try {
    return await Promise.race([work, over]);
  } finally {
    clearTimeout(timer);
  }
}
