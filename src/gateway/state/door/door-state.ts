import type { Config } from "../../../config/schema.js";
import type { HostDirectory } from "../../../hosts/directory.js";
import type { ServerRecord } from "../../../model/server.js";
import type { Pool } from "../../../pool/pool.js";
import type { Sessions } from "../../../sessions/sessions.js";
import type { Store } from "../../../store/ports.js";
import type { Params } from "../../wire/client-message.js";

/** The parts of the fleet that the front door needs. */
export interface DoorContext {
  config: Config;
  store: Store;
  sessions: Sessions;
  directory: HostDirectory;
  pool: Pool;
}

/**
 * Runs `start`, or waits for the `start` that already runs for that server. When `signal` aborts, only this wait ends: the
 * start goes on for the other callers, because it gets another signal.
 */
export type Together = (
  serverId: string,
  signal: AbortSignal,
  start: (signal: AbortSignal) => Promise<ServerRecord>,
) => Promise<ServerRecord>;

/** The front door's context, with what it needs for other hosts. */
export interface DoorOwner extends DoorContext {
  /** Does what another host asks of this one. @returns the result, which is sent back as JSON. */
  control: (method: string, params: Params, signal: AbortSignal) => Promise<unknown>;
}
