import { expect, it, vi } from "vitest";
import { merge } from "../../src/api/streams/merge.js";

/** Yields these values, and then waits until `end` resolves, if it is given. */
async function* values(all: readonly number[], end?: Promise<void>): AsyncGenerator<number, void, undefined> {
  yield* all;
  await end;
}

async function listOf(merged: AsyncIterable<number>): Promise<number[]> {
  const list: number[] = [];
  for await (const value of merged) list.push(value);
  return list.toSorted((a, b) => a - b);
}

it("merge yields the values of both generators, and ends with the first one", async () => {
  const never = new Promise<void>(() => undefined);
  expect(await listOf(merge(values([1, 2, 3]), values([], never)))).toEqual([1, 2, 3]);
  let end = (): void => undefined;
  const open = new Promise<void>((resolve) => (end = resolve));
  const all = listOf(merge(values([1, 3], open), values([2, 4])));
  setImmediate(end);
  expect(await all).toEqual([1, 2, 3, 4]);
});

it("merge fails like the generator that fails", async () => {
  const failing = (async function* (): AsyncGenerator<number, void, undefined> {
    yield 1;
    throw new Error("no more");
  })();
  await expect(listOf(merge(values([], new Promise(() => undefined)), failing))).rejects.toThrow("no more");
});

it("merge waits only once for a generator that yields nothing, however many values the other one has", async () => {
  const silent = values([], new Promise(() => undefined));
  const pending = new Promise<IteratorResult<number, void>>(() => undefined);
  const then = vi.spyOn(pending, "then");
  const next = vi.spyOn(silent, "next").mockReturnValue(pending);
  await listOf(merge(values(Array.from({ length: 1_000 }, (_, at) => at)), silent));
  expect(next).toHaveBeenCalledOnce();
  expect(then.mock.calls.length).toBeLessThan(5); // vitest waits for it, too
});
