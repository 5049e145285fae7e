import type { ServerState } from "../../model/server.js";

/** These are all values that a label may have. Each one has a series from the start. */

/** Why a server was started again. `start`: it ended before its first answer. */
export const RESTART_REASONS = ["crash", "hang", "start"] as const;
export const RECYCLE_REASONS = ["memory", "age", "sessions"] as const;
export const TURN_OUTCOMES = ["completed", "failed", "aborted", "cut"] as const;
export const PROBE_OUTCOMES = ["ok", "failed"] as const;
export const GC_OUTCOMES = ["ok", "failed"] as const;

const EACH_STATE: Record<ServerState, true> = {
  starting: true,
  ready: true,
  unhealthy: true,
  draining: true,
  stopped: true,
  failed: true,
};
export const SERVER_STATES = Object.keys(EACH_STATE) as ServerState[];

export type RestartReason = (typeof RESTART_REASONS)[number];
export type RecycleReason = (typeof RECYCLE_REASONS)[number];
export type TurnOutcome = (typeof TURN_OUTCOMES)[number];
export type ProbeOutcome = (typeof PROBE_OUTCOMES)[number];
