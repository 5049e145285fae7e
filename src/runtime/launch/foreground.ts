import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { constants } from "node:os";
import { quote, systemCode } from "../../base/errors.js";
import { identify, isAlive, processesOfSession } from "../process/process-table.js";
import { allGone, sendSignal } from "../process/stop.js";

export interface Ended {
  /**
   * The command's exit code. 128 plus the signal's number if a signal ended the command; 127 if the command does not
   * exist; 126 if it cannot be run.
   */
  exitCode: number;
  problem: string | null;
}

const NOT_FOUND = 127;
const NOT_EXECUTABLE = 126;
const KILL_WAIT_MS = 5_000;

/**
 * A command that shares this process's input and output. It has its own process group, so that a signal reaches the
 * whole command and nothing else. The terminal's signals reach only this process, which has to forward them.
 */
export class ForegroundCommand {
  /** Never rejects. */
  readonly ended: Promise<Ended>;
  readonly #child: ChildProcess;

  constructor(
    [file = "", ...args]: readonly string[],
    { env, outputToStderr }: { env: NodeJS.ProcessEnv; outputToStderr: boolean },
  ) {
    const stdio = ["inherit", outputToStderr ? 2 : "inherit", "inherit"] as const;
    this.#child = spawn(file, args, { stdio: [...stdio], detached: true, env });
    this.ended = endOf(this.#child, file);
  }

  /**
   * Signals the command's process group. The signal cannot reach a later process with the same PID or group, because
   * the system reuses neither before Node has seen the command end.
   */
  signal(name: NodeJS.Signals): void {
    const { pid, exitCode, signalCode } = this.#child;
    if (pid !== undefined && exitCode === null && signalCode === null) sendSignal(-pid, name);
  }

  /**
   * Ends the command and everything that it started. Resolves when all these processes are gone, or 5 seconds after
   * SIGKILL.
   */
  async end(graceMs: number): Promise<void> {
    const leader = this.#child.pid === undefined ? null : identify(this.#child.pid);
    if (leader === null) return;
    // List the processes before the first signal, because nobody can find the children of a leader that has already
    // ended.
    const members = processesOfSession(leader);
    this.signal("SIGTERM");
    // A stopped process handles SIGTERM only when it continues.
    this.signal("SIGCONT");
    if (await allGone(members, graceMs)) return;
    this.signal("SIGKILL");
    const all = [...members, ...processesOfSession(leader)];
    for (const member of all) if (isAlive(member)) sendSignal(member.pid, "SIGKILL");
    await allGone(all, KILL_WAIT_MS);
  }
}

async function endOf(child: ChildProcess, file: string): Promise<Ended> {
  try {
    const [code, signal] = (await once(child, "exit")) as [number | null, NodeJS.Signals | null]; // rejects on "error"
    return { exitCode: code ?? (signal === null ? 1 : 128 + constants.signals[signal]), problem: null };
  } catch (error) {
    const exitCode = systemCode(error) === "ENOENT" ? NOT_FOUND : NOT_EXECUTABLE;
    return { exitCode, problem: `${quote(file)} cannot be run: ${reason(error)}.` };
  }
}

function reason(error: unknown): string {
  if (systemCode(error) === "ENOENT") return "there is no such command";
  if (systemCode(error) === "EACCES") return "it is not an executable file";
  return error instanceof Error ? error.message : String(error);
}
