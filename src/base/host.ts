/** The facts that a host publishes about itself. */
export interface HostEntry {
  /**
   * The `host:port` at which other hosts reach the host's front door, with `tls://` before it if the door has TLS. Null
   * if the host has no front door.
   */
  door: string | null;
  /** `draining`: the fleet no longer places users on the host. */
  state: "serving" | "draining";
  /** When its `serve` started (ISO 8601, UTC). */
  startedAt: string;
  /** The version of copilotfleet that its `serve` runs. */
  version?: string;
  /** The folder for session state that all hosts mount; null if the host uses its own disk. */
  storage: string | null;
  /**
   * The time at which this entry ends, in milliseconds since the epoch by the store's clock. Each heartbeat sets a
   * later time, so that nobody can put an earlier entry back.
   */
  until?: number;
}

export interface HostRecord extends HostEntry {
  name: string;
  instance: string;
  /**
   * The number of the host's present term. Other hosts may have taken the sessions that the host had in an earlier
   * term.
   */
  term: number;
  gone: boolean;
  /** How long the host still counts as alive, in milliseconds; 0 if it is gone. */
  remainingMs: number;
}

/** The hosts on which users can be placed. A host needs a front door for this, so that other hosts can reach it. */
export function admitting(hosts: readonly HostRecord[]): HostRecord[] {
  return hosts.filter(({ gone, state, door }) => !gone && state === "serving" && door !== null);
}

/** The host and the shared server on which a user's sessions are created. */
export interface Placement {
  /** Absent if the store serves a single host. */
  host?: string;
  /** The shared server on that host; null if the user has their own server. */
  serverId: string | null;
}

export interface UserPlacement {
  user: string;
  placement: Placement;
}

/**
 * An erasure of a user's data. The record names the user and the user's sessions, and exists until all hosts have
 * erased their part, also those that were gone when the erasure began.
 */
export interface Purge {
  user: string;
  /** ISO 8601, UTC. */
  begunAt: string;
  /** The hosts that may still have data of the user. Null stands for the only host of a fleet. */
  pending: (string | null)[];
  /**
   * The ids of the user's sessions when the purge began. Each host needs them, because it may have traces of a session
   * that another host erases first.
   */
  sessions?: string[];
  /**
   * Set once a host has erased its part, and with it what belongs to no host, such as tokens. If only hosts that are
   * gone are still pending, the user may begin again.
   */
  partlyDone?: true;
}
