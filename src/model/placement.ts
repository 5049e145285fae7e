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

/** An erasure of a user's data that is under way. The only record that names the user until the erasure is complete. */
export interface Purge {
  user: string;
  /** ISO 8601, UTC. */
  begunAt: string;
  /** The hosts that may still have data of the user. Null stands for the only host of a fleet. */
  pending: (string | null)[];
  /**
   * The names that a lost host may still have, if the purge ended without it: pseudonyms of the user, of the user's server and
   * of the sessions. `user` is then a random mark, so that no key of the store names the user.
   */
  left?: string[];
}
