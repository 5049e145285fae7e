import type { Config } from "../config/schema.js";
import type { Pool } from "../pool/pool.js";
import type { GcResult } from "../sessions/gc.js";
import type { Store } from "../store/store.js";
import type { FleetMetrics } from "./metrics.js";

export type LogLevel = "debug" | "info" | "warn" | "error";

/** One event of the supervisor's life. Ids stand in the fields, never the content of a conversation. */
export type ServeLog = (level: LogLevel, message: string, fields?: Readonly<Record<string, unknown>>) => void;

/** What all parts of the supervisor work with. */
export interface ServeContext {
  store: Store;
  config: Config;
  stateRoot: string;
  pool: Pool;
  metrics: FleetMetrics;
  log: ServeLog;
  /** One run of gc with the configured TTL. */
  gc(signal: AbortSignal): Promise<GcResult>;
}
