import type { Suggestion } from "../../errors.js";

/** The part of a message that states why a value is refused ("which has no unit"), and the next step. */
export interface Fault {
  problem: string;
  advice: Suggestion;
}

/** How a duration or a size is written. */
interface Notation {
  units: readonly string[];
  /** A usual value, such as "24h". */
  example: string;
  /** States why a text of the right form is out of range. */
  outOfRange: (text: string) => string;
}

/** Matches a number that the advice may repeat with a unit. A longer number could be out of range. */
const USUAL_NUMBER = /^[1-9][\d.]{0,3}$/;

/** Finds out why a text is not a duration or a size. Never guesses a unit: `gc --ttl 5` could delete everything. */
export function measureFault(given: string, { units, example, outOfRange }: Notation): Fault {
  const text = given.trim();
  const write: Suggestion = `Write a number with a unit, such as ${example}.`;
  if (text === "") return { problem: "which is empty", advice: write };
  if (/^\d+(?:\.\d+)?$/.test(text)) {
    const unit = example.replace(/^\d+/, "");
    const own = USUAL_NUMBER.test(text) ? `${text}${unit}` : example;
    return { problem: "which has no unit", advice: `Add a unit: ${listed(units)}, such as ${own}.` };
  }
  if (/^-\s*\d/.test(text))
    return { problem: "which is negative", advice: `Write a number above 0 with a unit, such as ${example}.` };
  if (!/^\d+(?:\.\d+)?\s*\p{L}/u.test(text)) return { problem: "which is not a number with a unit", advice: write };
  const written = Array.from(text.matchAll(/\p{L}+/gu), ([unit]) => unit);
  const unknown = written.find((unit) => !units.includes(unit));
  // Do not show a long word, because it may be a secret in the wrong place.
  if (unknown !== undefined && unknown.length <= 12) {
    return { problem: `and "${unknown}" is not a unit`, advice: `Use a unit: ${listed(units)}, such as ${example}.` };
  }
  const isWhole = unknown === undefined && /^(?:\d+(?:\.\d+)?\p{L}+)+$/u.test(text) && text.length <= 64;
  return { problem: isWhole ? outOfRange(text) : "which is not a number with a unit", advice: write };
}

function listed(units: readonly string[]): string {
  return units.join(", ").replace(/, (?=[^,]*$)/, " or ");
}
