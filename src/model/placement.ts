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
 * An erasure of a user's data that is under way. This is the last record that names the user and the user's sessions. It
 * exists until the erasure is complete.
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
   * The pseudonyms of the user, of the user's server and of the sessions. Set only in the record that a purge leaves
   * for a lost host, so that this host can erase its part if it comes back. In such a record, `user` is a random mark,
   * so that no key of the store names the user.
   */
  left?: string[];
}
