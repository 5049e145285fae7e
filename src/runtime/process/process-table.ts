import { createHash } from "node:crypto";
import { constants, hostname } from "node:os";
import { FleetError } from "../../base/errors.js";
import { LAUNCH_VARIABLE, type ProcessIdentity } from "../../base/server.js";
import { type ProcessExit, type ProcessVariables, type SeenProcess, system } from "../../base/system/system.js";

/*
 * This file identifies processes by what `base/system/` reads from the operating system. Every result is a snapshot:
 * check an identity again right before you act on it.
 */

let host: string | undefined;

/** The identity of a process that we have just seen. */
function identityOf({ pid, started }: SeenProcess): ProcessIdentity {
  const { clock, processes } = system();
  host ??= hostname();
  return { host, bootId: clock.bootId(), pidNamespace: processes.namespace(), pid, startTicks: started };
}

/** The identity of the process with this PID. Null when the process is gone or a zombie. */
export function identify(pid: number): ProcessIdentity | null {
  const found = system().processes.find(pid);
  return found === null ? null : identityOf(found);
}

/** The identity of a server's process. Includes `innerPid` if the process has its own PID namespace. */
export function asServer(identity: ProcessIdentity): ProcessIdentity {
  const innerPid = system().processes.innerPid(identity.pid) ?? identity.pid;
  return innerPid === identity.pid ? identity : { ...identity, innerPid };
}

/**
 * How a server ended, if it is a zombie: a process whose parent has not yet asked for its exit status. With bwrap, the
 * zombie is bwrap, whose exit status shows how the server ended. Null if there is no such zombie, or if bwrap itself
 * was killed.
 */
export function exitOfZombie({ pid, startTicks, innerPid }: ProcessIdentity): ProcessExit | null {
  const { processes } = system();
  if (innerPid === undefined) return processes.exitOfZombie(pid, startTicks);
  // `innerPid` is also the PID that bwrap has outside the sandbox. Accept only a process that started no later than the
  // server: this is bwrap, because any process that reuses bwrap's PID starts after the server.
  const end = processes.exitOfZombie(innerPid, startTicks, "then or before");
  return end === null ? null : endInBwrap(end);
}

/**
 * How a server ended, derived from how its bwrap ended. Like a shell, bwrap exits with 128 plus the signal's number if
 * a signal ended the server. Null if a signal killed bwrap itself.
 */
export function endInBwrap(end: ProcessExit): ProcessExit | null {
  if (end.code === null) return null;
  const names = Object.entries(constants.signals) as [NodeJS.Signals, number][];
  const [signal] = names.find(([, number]) => number + 128 === end.code) ?? [];
  return signal === undefined ? end : { signal, code: null };
}

let self: ProcessIdentity | undefined;

export function ownIdentity(): ProcessIdentity {
  if (self === undefined) {
    const found = identify(process.pid);
    if (found === null) throw new FleetError("FLEET_INTERNAL", "The system does not show this process.");
    self = found;
  }
  return self;
}

/**
 * Whether exactly this process is still running. False for a reused PID, after a reboot, for a zombie, and for a
 * process of another host or PID namespace. The host name is not compared, because it may change while processes run.
 */
export function isAlive(identity: ProcessIdentity): boolean {
  const found = identify(identity.pid);
  return (
    found !== null &&
    found.startTicks === identity.startTicks &&
    found.bootId === identity.bootId &&
    found.pidNamespace === identity.pidNamespace
  );
}

/**
 * All live processes in the process session of a server. The session's leader is the server itself. With bwrap, it is
 * the bwrap process, whose PID outside the sandbox equals the server's PID inside. Empty if the server is dead or not
 * in that session, because another process may then have the leader's PID.
 */
export function processesOfSession(server: ProcessIdentity): ProcessIdentity[] {
  const members = system()
    .processes.inSession(server.innerPid ?? server.pid)
    .map(identityOf);
  return members.some(({ pid }) => pid === server.pid) && isAlive(server) ? members : [];
}

/**
 * All live processes that have the file open for writing. With the path of a server's log, this finds the server even
 * between fork and exec, when its process still has its parent's environment, without the launch id.
 */
export function writersOf(path: string): ProcessIdentity[] {
  return system().processes.writersOf(path).map(identityOf);
}

/**
 * The environment variable that contains the state folder of the fleet that started a process. With it, we find the
 * fleet's processes that no registry records.
 */
export const FLEET_VARIABLE = "COPILOTFLEET_OWNER";

/**
 * The environment variable in which the runtime gives tools and MCP servers the session's id (seen with 1.0.85 and
 * 1.0.102).
 */
const SESSION_VARIABLE = "COPILOT_AGENT_SESSION_ID";

/**
 * The mark of a launch, a number of 48 bits. Our launcher gives it to the server as its limit on file locks. So we find
 * what an agent started even if that has changed its environment and its parent. The mark does not reveal the launch
 * id.
 */
export function markOf(launchId: string): number {
  return createHash("sha256").update(launchId).digest().readUIntBE(0, 6);
}

/**
 * The processes of a launch: the server and everything that it started. Looks at every process of this user, so do not
 * call this often.
 */
export function processesOfLaunch(launchId: string): ProcessIdentity[] {
  const { processes } = system();
  const found = [...processes.withVariable(LAUNCH_VARIABLE, launchId), ...processes.withLockLimit(markOf(launchId))];
  return [...new Map(found.map((each) => [each.pid, each])).values()].map(identityOf);
}

export interface LaunchedProcess {
  identity: ProcessIdentity;
  /**
   * The session in the environment of the process, or else in that of its nearest ancestor in the launch. Null if
   * neither names a session.
   */
  sessionId: string | null;
  parent: number;
}

/**
 * The live processes of this fleet, by launch id. Includes descendants whose own environment lacks the variables above.
 */
export function processesByLaunch(stateRoot: string): Map<string, LaunchedProcess[]> {
  const names = [LAUNCH_VARIABLE, FLEET_VARIABLE, SESSION_VARIABLE];
  const known = new Map(
    system()
      .processes.withEnvironment(names)
      .map((found) => [found.pid, found]),
  );
  const launches = new Map<string, LaunchedProcess[]>();
  for (const found of known.values()) {
    const { launch, sessionId } = attribute(found, known);
    const launchId = launch?.variables[LAUNCH_VARIABLE];
    if (launchId === undefined || launch?.variables[FLEET_VARIABLE] !== stateRoot) continue;
    launches.set(launchId, [
      ...(launches.get(launchId) ?? []),
      { identity: identityOf(found), sessionId, parent: found.parent },
    ]);
  }
  return launches;
}

/**
 * Finds the launch and the session of a process in its environment, or else in the environment of its nearest ancestor.
 * Does not look beyond the launch, because the fleet itself may run inside a session of another fleet or of any Copilot
 * CLI.
 */
function attribute(
  found: ProcessVariables,
  known: ReadonlyMap<number, ProcessVariables>,
): { launch: ProcessVariables | undefined; sessionId: string | null } {
  let launch: ProcessVariables | undefined;
  let sessionId: string | undefined;
  let at: ProcessVariables | undefined = found;
  // A parent may end while we read the table, and a new process may get its PID. The chain of parents may then be a
  // circle, so limit the number of steps.
  for (let steps = 0; at !== undefined && steps <= known.size; steps++) {
    const launchId = at.variables[LAUNCH_VARIABLE];
    launch ??= launchId === undefined ? undefined : at;
    if (launchId !== undefined && launchId !== launch?.variables[LAUNCH_VARIABLE]) break;
    if (launch === undefined || launchId !== undefined) sessionId ??= at.variables[SESSION_VARIABLE];
    if (launch !== undefined && sessionId !== undefined) break;
    at = known.get(at.parent);
  }
  return { launch, sessionId: sessionId ?? null };
}
