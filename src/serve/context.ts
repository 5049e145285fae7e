import type { Config } from "../config/schema.js";
import type { FrontDoor } from "../gateway/door.js";
import type { DoorListeners } from "../gateway/state/door/report.js";
import type { HostDirectory } from "../hosts/directory.js";
import type { Pool } from "../pool/pool.js";
import type { GcResult } from "../sessions/gc/collect.js";
import type { Store } from "../store/ports.js";
import type { FleetMetrics } from "./report/metrics.js";

export type LogLevel = "debug" | "info" | "warn" | "error";

/** Logs one event of the supervisor. The fields may hold ids, but never the content of a conversation. */
export type ServeLog = (level: LogLevel, message: string, fields?: Readonly<Record<string, unknown>>) => void;

/** The collaborators and settings that all parts of the supervisor share. */
export interface ServeContext {
  store: Store;
  config: Config;
  stateRoot: string;
  directory: HostDirectory;
  pool: Pool;
  metrics: FleetMetrics;
  log: ServeLog;
  /** Opens the front door. Null when this host has none. */
  openDoor: ((options: DoorListeners & { signal: AbortSignal }) => Promise<FrontDoor>) | null;
  /** Runs gc once with the configured TTL. */
  gc(signal: AbortSignal): Promise<GcResult>;
}
