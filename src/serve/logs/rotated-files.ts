import { randomBytes } from "node:crypto";
import { readdirSync, renameSync, rmSync } from "node:fs";
import { basename, dirname, join } from "node:path";

/** The path of a rotated file: `server.log.1` is the newest. We rename and remove links, but never follow them. */
export function rotatedPath(log: string, number: number): string {
  return `${log}.${number}`;
}

/** A path for a copy in progress. No other rotation uses it, and it does not count as a rotated file. */
export function temporaryPath(log: string): string {
  return join(dirname(log), `.${basename(log)}.${randomBytes(4).toString("hex")}.tmp`);
}

/** Removes the incomplete copies of rotations that were killed. */
export function removeLeftOvers(log: string): void {
  const prefix = `.${basename(log)}.`;
  for (const name of readdirSync(dirname(log))) {
    if (name.startsWith(prefix) && /^[0-9a-f]{8}\.tmp$/.test(name.slice(prefix.length))) {
      rmSync(join(dirname(log), name), { force: true });
    }
  }
}

/**
 * Frees the path of the newest file: moves the files before the first gap up by one. Removes what it must, so that at most
 * `keep` files exist together with the new one.
 */
export function makeRoom(log: string, keep: number): void {
  const numbers = new Set(rotatedNumbers(log));
  for (const number of numbers) if (number > keep) rmSync(rotatedPath(log, number));
  let gap = 1;
  while (gap < keep && numbers.has(gap)) gap++;
  for (let number = gap - 1; number >= 1; number--) {
    renameSync(rotatedPath(log, number), rotatedPath(log, number + 1));
  }
}

/** Removes the oldest rotated file. @returns whether there was one. */
export function dropOldest(log: string): boolean {
  const numbers = rotatedNumbers(log);
  if (numbers.length === 0) return false;
  rmSync(rotatedPath(log, Math.max(...numbers)));
  return true;
}

function rotatedNumbers(log: string): number[] {
  const prefix = `${basename(log)}.`;
  return readdirSync(dirname(log)).flatMap((name) => {
    const number = name.startsWith(prefix) ? name.slice(prefix.length) : "";
    return /^[1-9]\d{0,8}$/.test(number) ? [Number(number)] : [];
  });
}
