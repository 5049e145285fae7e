import type { ErrorEntry } from "./entry.js";
import { ERRORS, type FleetErrorCode } from "./table.js";

/** One error of the table, with its code. */
export interface Explanation extends ErrorEntry {
  code: string;
}

/** All codes that share an exit code. */
export interface ErrorGroup {
  exit: number;
  /** The meaning of the exit code. */
  title: string;
  errors: { code: string; title: string; retryable: boolean }[];
}

/** The meaning of each exit code, as in docs/commands.md. */
const GROUPS: Readonly<Record<ErrorEntry["exit"], string>> = {
  1: "A bug in copilotfleet",
  2: "Wrong usage",
  3: "Wrong configuration",
  4: "Not found, or not yours",
  5: "A conflict",
  6: "A capacity limit or a time-out",
  7: "A backend is not available",
  8: "A turn had to be cut",
};

/** Explains a code. Accepts lower case, and a code without `FLEET_`. Null if the code does not exist. */
export function explain(text: string): Explanation | null {
  const word = text.toUpperCase();
  const code = [word, `FLEET_${word}`].find((name): name is FleetErrorCode => Object.hasOwn(ERRORS, name));
  if (code === undefined) return null;
  const { httpFix: _, ...entry } = ERRORS[code];
  return { code, ...entry };
}

/** Lists all codes, in alphabetical order within each group. */
export function errorGroups(): ErrorGroup[] {
  const errors = Object.entries(ERRORS).map(([code, { exit, title, retryable }]) => ({ exit, code, title, retryable }));
  errors.sort((a, b) => (a.code < b.code ? -1 : 1));
  return Object.entries(GROUPS).map(([key, title]) => ({
    exit: Number(key),
    title,
    errors: errors.flatMap(({ exit, ...error }) => (exit === Number(key) ? error : [])),
  }));
}
