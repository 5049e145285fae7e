import { quote } from "../../errors.js";
import { hourOf, type LedgerLine, UNREPORTED } from "../../model/usage/usage.js";

const AMOUNTS = Object.keys(UNREPORTED) as (keyof typeof UNREPORTED)[];

/**
 * Leaves out amounts and lines that cannot be added up, such as an amount that is not finite. Redis would refuse such a
 * line at every attempt, and all later lines would wait behind it.
 *
 * @param warn receives a message for each amount or line that is left out
 */
export function soundLines(lines: readonly LedgerLine[], warn: (message: string) => void): LedgerLine[] {
  return lines.flatMap((line) => {
    const leaveOut = (what: string, value: unknown) =>
      warn(`The ledger leaves out ${what} of the ${line.kind} ${quote(line.id)}, which is ${quote(String(value))}.`);
    if (Number.isNaN(hourOf(line.at))) {
      leaveOut("the line with the time", line.at);
      return [];
    }
    const unsound = AMOUNTS.filter((name) => line[name] !== null && !isAmount(line[name]));
    for (const name of unsound) leaveOut(name, line[name]);
    return unsound.length === 0 ? [line] : [{ ...line, ...Object.fromEntries(unsound.map((name) => [name, null])) }];
  });
}

/** Whether the value can be added up. A larger number cannot, because the sum might not be finite. */
function isAmount(value: unknown): boolean {
  return typeof value === "number" && Math.abs(value) <= Number.MAX_SAFE_INTEGER;
}
