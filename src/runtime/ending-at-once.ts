import { either } from "./clock.js";

/**
 * Returns a generator that ends at once when the caller stops reading, even while it waits for a value. A plain
 * generator would end only after it has received that value.
 *
 * @param begin yields the values until the signal that it receives aborts. That signal aborts when `signal` aborts, or
 * when the caller stops reading.
 */
export function endingAtOnce<T>(
  signal: AbortSignal | undefined,
  begin: (signal: AbortSignal) => AsyncIterable<T>,
): AsyncGenerator<T, void, undefined> {
  const over = new AbortController();
  const values = valuesUntil(over, signal, begin);
  const end = values.return.bind(values);
  values.return = async (value) => {
    over.abort();
    return await end(value);
  };
  return values;
}

async function* valuesUntil<T>(
  over: AbortController,
  signal: AbortSignal | undefined,
  begin: (signal: AbortSignal) => AsyncIterable<T>,
): AsyncGenerator<T, void, undefined> {
  using ending = either(signal, over.signal);
  try {
    yield* begin(ending.signal);
  } catch (error) {
    if (!over.signal.aborted) throw error;
  } finally {
    over.abort();
  }
}
