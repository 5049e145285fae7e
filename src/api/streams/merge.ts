interface Next<T> {
  from: AsyncGenerator<T, void, undefined>;
  result: IteratorResult<T, void>;
}

/** Yields the values of both generators as they come, until the first generator ends. Then it ends the second one, too. */
export async function* merge<T>(
  first: AsyncGenerator<T, void, undefined>,
  second: AsyncGenerator<T, void, undefined>,
): AsyncGenerator<T, void, undefined> {
  const next = async (from: typeof first): Promise<Next<T>> => ({ from, result: await from.next() });
  let fromFirst = next(first);
  let fromSecond: Promise<Next<T>> | undefined = next(second);
  // Nobody waits for it after the first generator has ended.
  fromSecond.catch(() => undefined);
  try {
    for (;;) {
      const { from, result }: Next<T> = await Promise.race([
        fromFirst,
        ...(fromSecond === undefined ? [] : [fromSecond]),
      ]);
      if (from === first) {
        if (result.done === true) return;
        fromFirst = next(first);
        fromFirst.catch(() => undefined);
      } else {
        fromSecond = result.done === true ? undefined : next(second);
        fromSecond?.catch(() => undefined);
      }
      if (result.done !== true) yield result.value;
    }
  } finally {
    // A generator that waits ends only when its signal aborts.
    void first.return();
    void second.return();
  }
}
