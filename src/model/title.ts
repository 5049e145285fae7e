import { printableLines } from "../config/values/text.js";
import { blankFault, textFault } from "../config/values/text-fault.js";
import { FleetError, quote } from "../errors.js";

export const LONGEST_TITLE = 80;
export const ALLOWED_TITLE = `one line of at most ${LONGEST_TITLE} characters without control characters`;
const HARMLESS = /[^\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]|[\u200c-\u200f\u00ad]/u;

/** The title of a session that begins with this prompt: the prompt's first line, shortened. Null if it has no text. */
export function titleOf(prompt: string): string | null {
  const line = /[^\s\u200c-\u200f\u00ad].{0,200}/u.exec(prompt)?.[0];
  if (line === undefined) return null;
  const text = printableLines(line.replaceAll("\t", " ")).trimEnd();
  if (text.length <= LONGEST_TITLE) return text;
  // Do not keep half of a character that consists of two code units.
  const cut = text.slice(0, LONGEST_TITLE - 1).replace(/[\ud800-\udbff]$/, "");
  return `${cut.trimEnd()}…`;
}

export function titleFault(title: string): string | null {
  const rule = { characters: HARMLESS, longest: LONGEST_TITLE };
  return blankFault(title) ?? textFault(title, rule) ?? (titleOf(title) === null ? "which has no visible text" : null);
}

/** Checks the title that a user gives to a session. @throws FleetError `FLEET_USAGE_INVALID` */
export function validateTitle(title: string, name: string): string {
  const fault = titleFault(title);
  if (fault === null) return title;
  throw new FleetError("FLEET_USAGE_INVALID", `${name} is ${quote(title)}, ${fault}. Allowed: ${ALLOWED_TITLE}`, {
    suggestions: ['Give a short title in one line, such as "review".'],
  });
}
