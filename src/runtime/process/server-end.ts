import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { systemCode } from "../../errors.js";
import type { ServerRecord } from "../../model/server.js";
import type { ProcessExit } from "../../system/system.js";
import { replaceServerFile } from "../files/server-folder.js";
import { exitOfZombie } from "./process-table.js";

/** How one launch ended. The process that started the launch writes this. */
interface EndNote extends ProcessExit {
  launchId: string;
  at: string;
}

function notePath(home: string): string {
  return join(dirname(home), "last-end.json");
}

/**
 * Records how a launch ended, because Linux reports an exit status only to the parent process. Ignores a missing folder or a
 * full disk, because the note is optional.
 */
export function noteEnd(home: string, launchId: string, exit: ProcessExit): void {
  const note: EndNote = { launchId, ...exit, at: new Date().toISOString() };
  try {
    replaceServerFile(notePath(home), JSON.stringify(note));
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
  }
}

/** Describes how a launch ended, by the note of its starter or, for a zombie, by the kernel. */
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

function readNote(home: string): EndNote | null {
  try {
    return JSON.parse(readFileSync(notePath(home), "utf8")) as EndNote;
  } catch (error) {
    if (systemCode(error) === undefined && !(error instanceof SyntaxError)) throw error;
    return null;
  }
}
