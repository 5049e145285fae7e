interface Arrived<T> {
  from: AsyncGenerator<T, void, undefined>;
  /** Undefined if the generator failed. */
  result?: IteratorResult<T, void>;
  error?: unknown;
}

/** Yields the values of both generators as they come, until the first generator ends. Then it ends the second one, too. */
export async function* merge<T>(
  first: AsyncGenerator<T, void, undefined>,
  second: AsyncGenerator<T, void, undefined>,
): AsyncGenerator<T, void, undefined> {
  const arrived: Arrived<T>[] = [];
  let wake = (): void => undefined;
  const add = (each: Arrived<T>) => {
    arrived.push(each);
    wake();
  };
  // A race of promises would keep a piece of memory for each value until the slower generator has one.
  const take = (from: typeof first) => {
    from.next().then(
      (result) => add({ from, result }),
      (error: unknown) => add({ from, error }),
    );
  };
  take(first);
  take(second);
  try {
    for (;;) {
      const next = arrived.shift();
      if (next === undefined) {
        await new Promise<void>((resolve) => (wake = resolve));
        continue;
      }
      const { from, result, error } = next;
      if (result === undefined) throw error;
      if (result.done === true && from === first) return;
      if (result.done === true) continue;
      yield result.value;
      take(from);
    }
  } finally {
    // A generator that waits ends only when its signal aborts.
    void first.return();
    void second.return();
  }
}
