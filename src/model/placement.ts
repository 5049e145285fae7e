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
