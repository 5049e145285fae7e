import { readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { systemCode } from "../../errors.js";
import type { ServerRecord } from "../../model/server.js";
import { exitOfZombie, type ProcessExit } from "./process-table.js";

/** How one launch ended, as seen by the process that started it. */
interface EndNote extends ProcessExit {
  launchId: string;
  /** ISO 8601, UTC. */
  at: string;
}

function notePath(home: string): string {
  return join(dirname(home), "last-end.json");
}

/**
 * Records how a launch ended, for the command that repairs the record. Linux reports an exit status to the parent process
 * only, so the process that started the server has to write it down.
 *
 * The note is optional: a missing folder or a full disk must not fail the process that happens to be the parent.
 */
export function noteEnd(home: string, launchId: string, exit: ProcessExit): void {
  const note: EndNote = { launchId, ...exit, at: new Date().toISOString() };
  const path = notePath(home);
  const temporary = `${path}.tmp`;
  try {
    rmSync(temporary, { force: true });
    writeFileSync(temporary, JSON.stringify(note), { mode: 0o600, flag: "wx" }); // "wx" never follows a link
    renameSync(temporary, path);
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
  }
}

/**
 * Describes how a server's process ended. There are two sources: the note of the process that started it, and the kernel
 * for as long as nobody has reaped the process. Without both, nobody can know.
 */
export function describeEnd({ home, launchId, process }: Pick<ServerRecord, "home" | "launchId" | "process">): string {
  const note = readNote(home);
  const seen = note?.launchId === launchId ? note : null;
  const exit = seen ?? (process === null ? null : exitOfZombie(process));
  if (exit === null) {
    return "its process ended in an unknown way, because the process that started it had already exited";
  }
  const how = exit.signal === null ? `exited with code ${exit.code}` : `killed by ${exit.signal}`;
  return seen === null ? how : `${how} at ${seen.at}`;
}

/** @returns null when there is no readable note. */
function readNote(home: string): EndNote | null {
  try {
    return JSON.parse(readFileSync(notePath(home), "utf8")) as EndNote;
  } catch (error) {
    if (systemCode(error) === undefined && !(error instanceof SyntaxError)) throw error;
    return null;
  }
}
