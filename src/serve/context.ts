import type { Config } from "../config/schema.js";
import type { DoorListeners } from "../gateway/context.js";
import type { FrontDoor } from "../gateway/door.js";
import type { HostDirectory } from "../hosts/directory.js";
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
  directory: HostDirectory;
  pool: Pool;
  metrics: FleetMetrics;
  log: ServeLog;
  /** Opens the front door; null: there is to be none. */
  openDoor: ((options: DoorListeners & { signal: AbortSignal }) => Promise<FrontDoor>) | null;
  /** One run of gc with the configured TTL. */
  gc(signal: AbortSignal): Promise<GcResult>;
}
