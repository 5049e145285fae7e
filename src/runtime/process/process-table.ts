import { constants, hostname } from "node:os";
import { FleetError } from "../../errors.js";
import type { ProcessIdentity } from "../../model/process.js";
import { type ProcessExit, type SeenProcess, system } from "../../system/system.js";

/*
 * This file identifies processes by what `system/` reads from the operating system. Every result is a snapshot: check
 * an identity again right before you act on it.
 */

let host: string | undefined;

/** The identity of a process that we have just seen. */
export function identityOf({ pid, started }: SeenProcess): ProcessIdentity {
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
 * Whether exactly this process is still running. False for a reused PID, after a reboot, for a zombie, and for a process of
 * another host or PID namespace. The host name is not compared, because it may change while processes run.
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
