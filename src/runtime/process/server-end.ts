import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { systemCode } from "../../errors.js";
import type { ServerRecord } from "../../model/server.js";
import { type ProcessExit, system } from "../../system/system.js";
import { replaceServerFile } from "../files/server-folder.js";
import { appendToLog } from "../files/server-log.js";
import { exitOfZombie } from "./process-table.js";
import type { StopOutcome } from "./stop.js";

/** The content of `last-end.json`: how one launch ended. The process that started the launch writes this file. */
interface EndNote extends ProcessExit {
  launchId: string;
  at: string;
}

function notePath(home: string): string {
  return join(dirname(home), "last-end.json");
}

/**
 * Records how a launch ended, because Linux reports an exit status only to the parent process. Ignores a missing folder
 * or a full disk, because nothing depends on this file.
 */
export function noteEnd(home: string, launchId: string, exit: ProcessExit): void {
  const note: EndNote = { launchId, ...exit, at: new Date().toISOString() };
  try {
    replaceServerFile(notePath(home), JSON.stringify(note));
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
  }
}

/** A launch whose process is gone. */
type Ended = Pick<ServerRecord, "home" | "launchId" | "process">;

/**
 * How a launch ended. The source is `last-end.json`, or else the kernel if the server's process is a zombie. If neither
 * shows the end, but the machine was restarted after the launch, the restart ended it. Otherwise `how` is null.
 */
function endOf({ home, launchId, process }: Ended): { how: string | null; at: string | null } {
  const note = readNote(home);
  const seen = note?.launchId === launchId ? note : null;
  const exit = seen ?? (process === null ? null : exitOfZombie(process));
  if (exit === null) {
    const isRestarted = process !== null && process.bootId !== system().clock.bootId();
    return { how: isRestarted ? "the machine was restarted" : null, at: null };
  }
  const how = exit.signal === null ? `exited with code ${exit.code}` : `killed by ${exit.signal}`;
  return { how, at: seen?.at ?? null };
}

const UNKNOWN = "ended in an unknown way, because the process that started it had already exited";

export function describeEnd(ended: Ended): string {
  const { how, at } = endOf(ended);
  if (how === null) return `its process ${UNKNOWN}`;
  return at === null ? how : `${how} at ${at}`;
}

interface EndOptions {
  /** Whether a command was stopping the server, and died before it could record the end. */
  stopping?: boolean;
}

/**
 * Adds a line to a server's log: the server's process ended before this process could stop it. The caller holds the
 * claim on the server.
 */
export function logEnd(ended: Ended, { stopping = false }: EndOptions = {}): void {
  const { how, at } = endOf(ended);
  if (ended.process === null) {
    const text = stopping ? "while a command was stopping the server" : "before the server answered";
    appendToLog(ended.home, `The launch ended ${text}.`, null);
    return;
  }
  const stopped = `ended while a command was stopping it${how === null ? "" : `: ${how}`}`;
  const alone = how === null ? UNKNOWN : `ended: ${how}`;
  const text = stopping ? stopped : alone;
  appendToLog(ended.home, `Process ${ended.process.pid} ${text}.`, at === null ? null : new Date(at));
}

interface StopNote extends EndOptions {
  /** Why the server was stopped, as the second half of a sentence. */
  because?: string;
}

/** Why a command ends a server that another command had begun to stop, as the second half of a sentence. */
export const UNFINISHED = "the command that was stopping it had ended";

/** Adds a line to a server's log: this process stopped the server. The caller holds the claim on the server. */
export function logStop(ended: Ended, outcome: StopOutcome, { because, stopping = false }: StopNote = {}): void {
  if (ended.process === null || outcome === "already-stopped") {
    logEnd(ended, { stopping });
    return;
  }
  const how = outcome === "killed" ? "killed by SIGKILL" : "ended after SIGTERM";
  const why = because === undefined ? "" : `, because ${because}`;
  appendToLog(ended.home, `Process ${ended.process.pid} was stopped by process ${process.pid}${why}: ${how}.`);
}

function readNote(home: string): EndNote | null {
  try {
    return JSON.parse(readFileSync(notePath(home), "utf8")) as EndNote;
  } catch (error) {
    if (systemCode(error) === undefined && !(error instanceof SyntaxError)) throw error;
    return null;
  }
}
