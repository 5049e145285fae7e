import { hostname } from "node:os";
import { FleetError } from "../../errors.js";
import type { ProcessIdentity } from "../../model/process.js";
import { type ProcessExit, type SeenProcess, system } from "../../system/system.js";

/*
 * Identities of processes, from what the system shows (`system/`). Every answer is a snapshot: check an identity again right
 * before you act on it.
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

/** The process of a server, which may have a PID namespace of its own. */
export function asServer(identity: ProcessIdentity): ProcessIdentity {
  const innerPid = system().processes.innerPid(identity.pid) ?? identity.pid;
  return innerPid === identity.pid ? identity : { ...identity, innerPid };
}

/**
 * How a zombie ended. A zombie is a process whose parent has not yet asked for its exit status. Null for any other process.
 */
export function exitOfZombie({ pid, startTicks }: ProcessIdentity): ProcessExit | null {
  return system().processes.exitOfZombie(pid, startTicks);
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
 * All live processes of a leader's process session. Empty if the leader is dead, because another process may have its PID.
 */
export function processesOfSession(leader: ProcessIdentity): ProcessIdentity[] {
  const members = system().processes.inSession(leader.pid).map(identityOf);
  return isAlive(leader) ? members : [];
}

/**
 * All live processes that have the file open for writing. With the path of its log, this finds a server even between fork
 * and exec, when it still has the environment of its parent.
 */
export function writersOf(path: string): ProcessIdentity[] {
  return system().processes.writersOf(path).map(identityOf);
}
