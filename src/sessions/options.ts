import type { ServerRecord } from "../model/server.js";
import type { TurnLease } from "./leases/seen.js";
import type { SessionOptions } from "./session-config.js";

export interface OpenOptions {
  user: string;
  /** Further settings for the SDK's `createSession` or `resumeSession`. */
  session?: SessionOptions | undefined;
  /** How long to wait for room in the server's memory, in milliseconds. Default: 30,000. */
  waitMs?: number | undefined;
  signal: AbortSignal;
  /**
   * A lease on the session that the caller holds. With it, a session on shared servers may be opened where the user is
   * placed, and not only where it was last.
   */
  lease?: TurnLease | undefined;
  /** The server on which the caller has set its use marker and was admitted. */
  marked?: ServerRecord | undefined;
}

export interface CreateOptions extends OpenOptions {
  /** Default: the purpose, if there is one, followed by a random id. */
  id?: string | undefined;
  purpose?: string | undefined;
  model?: string | undefined;
  /** How long after its last use gc may delete it, in milliseconds. Default: the TTL that is configured when gc runs. */
  ttlMs?: number | undefined;
  /** Other users who may use it. With a list, even an empty one, the session is collaborative. Default: it is private. */
  members?: readonly string[] | undefined;
  /** Whether to delete it when its use ends. */
  ephemeral?: boolean | undefined;
}
