import type { SessionsContext } from "../../sessions/context.js";
import type { Sessions } from "../../sessions/sessions.js";

/** A part of a user's data that a purge could not erase. */
export interface Remain {
  /** Null in a fleet on one host. */
  host: string | null;
  what: string;
  why: string;
}

/** The data that a purge erased on one host. */
export interface Purged {
  sessions: number;
  servers: number;
  tokens: number;
  /** The bytes of the files that were erased. */
  bytes: number;
  remains: Remain[];
}

/** The steps of a purge on one host, in their order. Each step can be repeated. */
export const PURGE_STEPS = ["servers", "sessions", "homes", "folders", "members", "records", "logs", "older"] as const;
export type PurgeStep = (typeof PURGE_STEPS)[number];

export interface PurgeContext {
  sessions: Sessions;
  stateRoot: string;
  signal: AbortSignal;
  /** Called before each step. Tests use it to kill the process at that point. */
  onStep?: ((step: PurgeStep) => void | Promise<void>) | undefined;
}

export interface Erasing extends PurgeContext {
  user: string;
  store: SessionsContext["store"];
  total: Purged;
  /** The ids of the user's sessions. Processes that used them may still write events about them during the purge. */
  ids: readonly string[];
  /**
   * When the purge began (Unix time in ms), if another host has already erased its part and what belongs to no host. The
   * user may have begun again since then.
   */
  doneElsewhereAt: number | null;
  /** The path to which the folder of the user's own server was moved; null if there is none. */
  moved: string | null;
}
