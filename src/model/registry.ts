import type { ProcessIdentity } from "./process.js";
import type { ServerRecord } from "./server.js";

/** The version of the recorded shapes below. The fleet refuses a store that a newer version wrote. */
export const SCHEMA = 1;

export interface Registry {
  servers: Record<string, ServerRecord>;
  /** How many placements `round-robin` has made so far. Absent if it has made none. */
  placed?: number;
  /** The supervisors of the hosts. An entry whose process has died counts as absent. */
  supervisors?: SupervisorRecord[];
  /** When `drain` closed the pool (ISO 8601, UTC). Absent if the pool is open. */
  drainedAt?: string;
}

export interface SupervisorRecord {
  process: ProcessIdentity;
  state: "serving" | "draining";
  /** ISO 8601, UTC. */
  startedAt: string;
  /** The version of copilotfleet that it runs. */
  version?: string;
  /** `host:port` of the supervisor's metrics and health endpoints; null if it has none. */
  metrics: string | null;
  /** `host:port` of the supervisor's front door; absent or null if it has none. */
  door?: string | null;
  /** The URL of the supervisor's HTTP API; absent or null if it has none. */
  http?: string | null;
}
