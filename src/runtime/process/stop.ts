import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { FleetError, systemCode } from "../../base/errors.js";
import type { SandboxReport } from "../../base/sandbox.js";
import type { ProcessIdentity, ServerRecord } from "../../base/server.js";
import { type ProcessExit, system } from "../../base/system/system.js";
import { parseObject } from "../../base/values/text.js";
import { groupsOf, processesInGroup, removeGroup } from "../../sandbox/limits.js";
import { logPath, replaceServerFile } from "../files/server-folder.js";
import { appendToLog } from "../files/server-log.js";
import { exitOfZombie, identify, isAlive, processesOfLaunch, processesOfSession, writersOf } from "./process-table.js";

type StopOutcome = "terminated" | "killed" | "already-stopped";

/** Identifies a server to stop. Each part may be null if it is not known. */
interface StopTarget {
  /**
   * Null if the process is dead or was never ready. The stop finds the remaining processes by `launchId` and `home`.
   */
  process: ProcessIdentity | null;
  launchId: string | null;
  /**
   * The server's home. A new child process has the log beside the home open even before it calls exec, so the stop
   * finds it by this log. Null if such a child cannot exist.
   */
  home: string | null;
  /**
   * The sandbox of the launch. A stop also ends the processes that are left in its control groups, and removes the
   * groups.
   */
  sandbox?: SandboxReport | undefined;
}

interface StopOptions {
  /** How long the server may take to end after SIGTERM, before SIGKILL, in milliseconds. */
  graceMs: number;
  force?: boolean;
  /** When this signal aborts, the grace period ends at once. */
  hurry?: AbortSignal;
}

const POLL_MS = 10;
/** How long bwrap may take to end after its server, and to report how the server ended, in milliseconds. */
const BWRAP_END_MS = 1_000;
const KILL_WAIT_MS = 5_000;

/**
 * Stops a server and everything that it started: SIGTERM, a grace period, SIGKILL. Then kills all other processes of
 * its process session and of its launch. Checks the identity of each process right before each signal, because PIDs are
 * reused. SIGTERM cuts turns in flight, so drain the server first.
 */
export async function stopServer(
  { process: identity, launchId, home, sandbox }: StopTarget,
  options: StopOptions,
): Promise<StopOutcome> {
  let outcome: StopOutcome = "already-stopped";
  const { limits } = sandbox ?? {};
  const runs = identity !== null && isAlive(identity);
  const groups = limits === undefined ? [] : groupsOf(limits, runs ? identity.pid : null);
  if (runs) {
    outcome = "terminated";
    let session = processesOfSession(identity);
    const skip = options.force === true || options.hurry?.aborted === true;
    const ended = skip ? false : await signalAndWait([identity], "SIGTERM", options.graceMs, options.hurry);
    if (!ended) {
      outcome = "killed";
      session = [...session, ...processesOfSession(identity)];
      await kill([identity]);
    }
    await kill(session);
  } else if (identity?.innerPid !== undefined && launchId !== null) {
    const bwrap = processesOfLaunch(launchId).filter(({ pid }) => pid === identity.innerPid);
    await allGone(bwrap, BWRAP_END_MS);
  }
  if (identity === null && home !== null) await kill(writersOf(logPath(home)));
  if (launchId !== null) await killAll(() => processesOfLaunch(launchId));
  for (const folder of groups) await endGroup(folder);
  return outcome;
}

/**
 * Kills the processes in a control group, and removes the group. Finds even processes that carry no sign of the launch,
 * because they changed their environment and our launcher gave them no mark.
 */
async function endGroup(folder: string): Promise<void> {
  const deadline = performance.now() + KILL_WAIT_MS;
  while (!removeGroup(folder) && performance.now() <= deadline) {
    await killAll(() => membersOf(folder));
    await delay(POLL_MS);
  }
}

function membersOf(folder: string): ProcessIdentity[] {
  const found = processesInGroup(folder).flatMap((pid) => identify(pid) ?? []);
  // Read the group again. If a PID is still in the group, it belongs to the process that we identified, and not to a
  // later process with the same PID.
  const members = new Set(processesInGroup(folder));
  return found.filter(({ pid }) => members.has(pid));
}

/** Ends processes: SIGTERM, a grace period in milliseconds, SIGKILL. */
export async function endProcesses(processes: ProcessIdentity[], graceMs: number): Promise<void> {
  if (!(await signalAndWait(processes, "SIGTERM", graceMs))) await kill(processes);
}

/** Kills what `find` returns, until it returns nothing, because a process may start others before it is killed. */
async function killAll(find: () => ProcessIdentity[]): Promise<void> {
  const deadline = performance.now() + KILL_WAIT_MS;
  for (let left = find(); left.length > 0; left = find()) {
    if (performance.now() > deadline) throw stillThere(left);
    await kill(left);
  }
}

async function kill(processes: ProcessIdentity[]): Promise<void> {
  if (processes.length === 0 || (await signalAndWait(processes, "SIGKILL", KILL_WAIT_MS))) return;
  throw stillThere(processes.filter(isAlive));
}

function stillThere(processes: ProcessIdentity[]): FleetError {
  const pids = processes.map(({ pid }) => pid).join(", ");
  return new FleetError("FLEET_INTERNAL", `SIGKILL did not end process ${pids}: it hangs in the kernel.`);
}

async function signalAndWait(
  processes: ProcessIdentity[],
  signal: NodeJS.Signals,
  waitMs: number,
  hurry?: AbortSignal,
): Promise<boolean> {
  for (const identity of processes) {
    if (isAlive(identity)) sendSignal(identity.pid, signal);
  }
  return await allGone(processes, waitMs, hurry);
}

/** Waits until all processes have ended. Resolves with false if some of them still run after `waitMs` milliseconds. */
export async function allGone(
  processes: readonly ProcessIdentity[],
  waitMs: number,
  hurry?: AbortSignal,
): Promise<boolean> {
  const until = performance.now() + waitMs;
  while (processes.some(isAlive)) {
    if (performance.now() > until || hurry?.aborted === true) return false;
    await delay(POLL_MS);
  }
  return true;
}

/** Signals a process, or with a negative number a process group. Ignores a process that has already ended. */
export function sendSignal(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if (systemCode(error) !== "ESRCH") throw error;
  }
}

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
  const seen = note.launchId === launchId && note.code !== undefined ? (note as EndNote) : null;
  const exit = seen ?? (process === null ? null : exitOfZombie(process));
  if (exit === null) {
    const isRestarted = process !== null && process.bootId !== system().clock.bootId();
    return { how: isRestarted ? "the machine was restarted" : null, at: null };
  }
  const how = exit.signal === null ? `exited with code ${exit.code}` : `killed by ${exit.signal}`;
  // Its parent removes a zombie at once, so a zombie has ended just now.
  return { how, at: seen?.at ?? new Date().toISOString() };
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
  const known = how === null ? "" : `: ${how}`;
  const text = stopping ? `ended while a command was stopping it${known}` : how === null ? UNKNOWN : `ended${known}`;
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

function readNote(home: string): Partial<EndNote> {
  try {
    return parseObject(readFileSync(notePath(home), "utf8")) ?? {};
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    return {};
  }
}
