import type { ServerRecord } from "../store/store.js";
import type { TurnLease } from "./lease-seen.js";
import type { SessionOptions } from "./session-config.js";

export interface OpenOptions {
  user: string;
  /** Further settings for the SDK's `createSession` or `resumeSession`. */
  session?: SessionOptions | undefined;
  /** How long to wait for room in the server's memory, in milliseconds. Default: 30,000. */
  waitMs?: number | undefined;
  signal: AbortSignal;
  /**
   * A lease on the session that the caller holds. On shared servers the session may then be opened where the user is
   * placed, and not only where it was last.
   */
  lease?: TurnLease | undefined;
  /** The server on which the caller has marked its use of the session, and was admitted. */
  marked?: ServerRecord | undefined;
}

export interface CreateOptions extends OpenOptions {
  /** Left out: a random id, behind the purpose if there is one. */
  id?: string | undefined;
  purpose?: string | undefined;
  model?: string | undefined;
  /** Milliseconds after its last use until gc may delete it. Left out: as configured at the time of gc. */
  ttlMs?: number | undefined;
  /** Other users who may use it; with an empty list it is collaborative all the same. Left out: it is private. */
  members?: readonly string[] | undefined;
  /** Deleted when its use ends. */
  ephemeral?: boolean | undefined;
}
