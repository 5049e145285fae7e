import { FleetError, quote } from "../../errors.js";
import { blankFault, textFault } from "./text-fault.js";

/** In characters. */
export const LONGEST_LABEL = 200;

/** Checks a short text that lists and events show on one line. */
export function parseLabel(text: string, name: string): string {
  const fault = blankFault(text) ?? textFault(text, { characters: /\P{Cc}/u, longest: LONGEST_LABEL });
  if (fault === null) return text;
  const allowed = `1 to ${LONGEST_LABEL} characters without control characters`;
  throw new FleetError("FLEET_USAGE_INVALID", `${name} is ${quote(text)}, ${fault}. Allowed: ${allowed}`, {
    suggestions: ['Give a short text, such as "review".'],
  });
}
