import { printable } from "../../../config/values/text.js";
import type { Value } from "./list.js";

/** Characters that begin a formula. The last four are the full-width forms of the first four. */
const FORMULA = "=+\\-@\uff1d\uff0b\uff0d\uff20";

/**
 * Matches the places before a possible formula: at the beginning of a cell, and after each character that separates
 * cells in some spreadsheet or country (https://owasp.org/www-community/attacks/CSV_Injection).
 */
const BEFORE_FORMULA = new RegExp(`(^|[,;|])(?=\\s*[${FORMULA}])`, "g");

/** Renders records as RFC 4180 defines them. Each record ends with a line break. Null becomes an empty field. */
export function renderCsv(records: readonly (readonly Value[])[]): string {
  return records.map((record) => `${record.map(renderField).join(",")}\r\n`).join("");
}

/** Puts an apostrophe before everything that a spreadsheet could take for a formula. `--json` shows the exact text. */
function renderField(value: Value): string {
  if (typeof value !== "string") return value === null ? "" : String(value);
  const text = printable(value).replace(BEFORE_FORMULA, "$1'");
  return /[",]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
