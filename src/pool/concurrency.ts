import { availableParallelism } from "node:os";

/**
 * How many servers may start at once. If more start at once, each start takes longer, because a start mostly needs the
 * processor.
 */
export const STARTS_AT_ONCE = Math.max(4, availableParallelism() * 4);

/** Runs `work` on every item, at most `limit` at once. Throws the first failure, but only after all calls have ended. */
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
