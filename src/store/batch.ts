import { FleetError } from "../errors.js";

/** Turns a document's data into the value that callers see. Every call returns a private copy. */
export type Parse<T> = (data: string) => T;

export type Outcome = { ok: true; value: unknown } | { ok: false; error: unknown };

/**
 * Runs the changes in order, each on the result of the ones before it. If a change throws, its draft is dropped and
 * only its own outcome is an error.
 */
export function applyChanges<T>(
  data: string,
  parse: Parse<T>,
  changes: readonly ((draft: T) => unknown)[],
): { data: string; outcomes: Outcome[] } {
  let current = data;
  const outcomes = changes.map((change): Outcome => {
    try {
      const draft = parse(current);
      const value = change(draft);
      if (value instanceof Promise) {
        value.catch(() => "the caller gets the error below instead");
        throw new FleetError(
          "FLEET_INTERNAL",
          "A change to the store must be synchronous; this one returned a promise.",
        );
      }
      current = JSON.stringify(draft);
      return { ok: true, value };
    } catch (error) {
      return { ok: false, error };
    }
  });
  return { data: current, outcomes };
}
