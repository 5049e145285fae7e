import { type ChildProcess, spawn } from "node:child_process";
import { setTimeout as delay } from "node:timers/promises";
import { quote, systemCode } from "../errors.js";
import { abortable } from "../runtime/deadline.js";
import { identify, isAlive, processesOfSession } from "../runtime/process-table.js";
import { type HeldLease, LEASE_VARIABLES } from "../sessions/leases.js";
import type { ProcessIdentity } from "../store/store.js";
import { exitCodeOfSignal, type LeaseSignals } from "./lease-signals.js";

/** How long a command whose lease is lost may take over SIGTERM. */
const GRACE_MS = 5_000;
const KILL_WAIT_MS = 5_000;
const POLL_MS = 20;

/** What a shell exits with when it cannot run a command. */
const NOT_FOUND = 127;
const NOT_EXECUTABLE = 126;

export interface RunOptions {
  signals: LeaseSignals;
  /** Standard output is for something else: the command's goes to standard error. */
  outputToStderr: boolean;
}

/**
 * Runs a command for as long as the lease is held, in a session and process group of its own. Resolves with its exit code,
 * 128 and the signal's number if a signal ended it. If the lease is lost, the command and all that it started are ended:
 * SIGTERM, 5 seconds, SIGKILL.
 *
 * Not guaranteed: when this process is killed, the command runs on, and its lease ends after its TTL. What must never
 * happen then has to be refused by the fence (`COPILOTFLEET_LEASE_FENCE`).
 *
 * @throws FleetError `FLEET_LEASE_LOST`, when the command has ended; the interrupt's reason, when it was not started.
 */
export async function runUnderLease(
  [file = "", ...args]: readonly string[],
  lease: HeldLease,
  { signals, outputToStderr }: RunOptions,
): Promise<number> {
  signals.interrupt.throwIfAborted();
  const child = spawn(file, args, {
    stdio: ["inherit", outputToStderr ? 2 : "inherit", "inherit"],
    detached: true,
    env: {
      ...process.env,
      [LEASE_VARIABLES.session]: lease.lease.sessionId,
      [LEASE_VARIABLES.token]: lease.token,
      [LEASE_VARIABLES.fence]: String(lease.fence),
    },
  });
  // Both before anything is waited for: a command may end, and a signal arrive, at any time from now on.
  const ended = exitCodeOf(child, file);
  signals.forwardTo((name) => signalGroup(child, name));
  try {
    return await abortable(ended, lease.signal);
  } catch (error) {
    if (lease.signal.aborted) await endGroup(child);
    throw error;
  }
}

async function exitCodeOf(child: ChildProcess, file: string): Promise<number> {
  try {
    const [code, signal] = await new Promise<[number | null, NodeJS.Signals | null]>((resolve, reject) => {
      child.once("error", reject);
      child.once("exit", (...end) => resolve(end));
    });
    return code ?? (signal === null ? 1 : exitCodeOfSignal(signal));
  } catch (error) {
    const missing = systemCode(error) === "ENOENT";
    process.stderr.write(`${quote(file)} cannot be run: ${missing ? "there is no such command" : reason(error)}.\n`);
    return missing ? NOT_FOUND : NOT_EXECUTABLE;
  }
}

function reason(error: unknown): string {
  if (systemCode(error) === "EACCES") return "it is not an executable file";
  return error instanceof Error ? error.message : String(error);
}

/** Until Node has seen the end of the child its PID cannot be somebody else's, and so neither its group's. */
function signalGroup(child: ChildProcess, name: NodeJS.Signals): void {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
  try {
    process.kill(-child.pid, name);
  } catch (error) {
    if (systemCode(error) !== "ESRCH") throw error;
  }
}

async function endGroup(child: ChildProcess): Promise<void> {
  const leader = child.pid === undefined ? null : identify(child.pid);
  if (leader === null) return;
  // Before the first signal: once the leader is gone, it can no longer be told what it had started.
  const members = processesOfSession(leader);
  signalGroup(child, "SIGTERM");
  // What is stopped takes note of SIGTERM only when it goes on.
  signalGroup(child, "SIGCONT");
  if (await allGone(members, GRACE_MS)) return;
  signalGroup(child, "SIGKILL");
  const all = [...members, ...processesOfSession(leader)];
  for (const member of all) kill(member);
  await allGone(all, KILL_WAIT_MS);
}

async function allGone(members: readonly ProcessIdentity[], withinMs: number): Promise<boolean> {
  const until = performance.now() + withinMs;
  while (members.some(isAlive)) {
    if (performance.now() > until) return false;
    await delay(POLL_MS);
  }
  return true;
}

function kill(member: ProcessIdentity): void {
  if (!isAlive(member)) return;
  try {
    process.kill(member.pid, "SIGKILL");
  } catch (error) {
    if (systemCode(error) !== "ESRCH") throw error;
  }
}
