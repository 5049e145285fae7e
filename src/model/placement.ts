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
 * An erasure of a user's data. The record names the user and the user's sessions, and exists until all hosts have erased
 * their part, also those that were gone when the erasure began.
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
   * Set once a host has erased its part, and with it what belongs to no host, such as tokens. If only hosts that are gone
   * are still pending, the user may begin again.
   */
  partlyDone?: true;
}
