import { availableParallelism } from "node:os";

/** Starting is mostly work of the processor: more at once than this only makes each one late. */
export const STARTS_AT_ONCE = Math.max(4, availableParallelism() * 4);

/**
 * Runs `work` on every item, at most `limit` at once, and keeps the order of the results. If any fails, the first
 * failure is thrown after all of them are done: nothing is left running behind the caller's back.
 */
export async function mapConcurrently<Item, Result>(
  items: readonly Item[],
  limit: number,
  work: (item: Item) => Promise<Result>,
): Promise<Result[]> {
  const results: Result[] = new Array(items.length);
  const failures: unknown[] = [];
  const queue = items.entries();
  const worker = async () => {
    for (const [index, item] of queue) {
      try {
        results[index] = await work(item);
      } catch (error) {
        failures.push(error);
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(limit, items.length) }, worker));
  if (failures.length > 0) throw failures[0];
  return results;
}
