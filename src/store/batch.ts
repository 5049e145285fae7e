import { FleetError } from "../errors.js";

/** How a document's data becomes what callers see. Every call gives a private copy. */
export type Parse<T> = (data: string) => T;

export type Outcome = { ok: true; value: unknown } | { ok: false; error: unknown };

/**
 * Runs changes one after the other, each on what the ones before it left. One that throws leaves no trace: its draft is
 * dropped, and only its own outcome is an error.
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
