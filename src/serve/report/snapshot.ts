import type { EventCounts } from "../../model/events/event.js";
import type { ServerState } from "../../model/server.js";
import type { UsageCounts } from "../../model/usage/usage.js";
import type { ModelRequests } from "../../models/gateway/exchange.js";
import type { StreamCounts } from "../context.js";

/** The measurements of a supervisor. Most values have the name of their series. */
export interface MetricsSnapshot {
  serversByState: Record<ServerState, number>;
  /** Running servers without a sandbox. */
  unrestricted: number;
  /** Sessions that are loaded in a server's memory. */
  activeSessions: number;
  turnsInFlight: number;
  /** Turns in flight that have shown no sign of life for too long. */
  turnsStalled: number;
  leases: number;
  /** Purges in the whole fleet that are not complete. */
  purges: number;
  /** When the oldest of these purges began, in seconds since 1970; 0 if there is none. */
  oldestPurge: number;
  memoryBytes: number;
  /** The free space that this process may use on the disk that holds the state, in bytes. Null if it is not known. */
  diskFreeBytes: number | null;
  doorClients: number;
  /** Turns in progress or waiting at the front door. */
  doorTurns: number;
  modelRequests: Readonly<ModelRequests>;
  usage: Readonly<UsageCounts>;
  streams: Readonly<StreamCounts>;
  /** The audit events of this process. */
  events: Readonly<EventCounts>;
}
