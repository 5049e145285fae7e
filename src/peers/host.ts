import type { LogPosition } from "../serve/logs/log-tail.js";
import type { Calls } from "./calls/rpc-table.js";

/**
 * One host of the fleet, with the operations on its own servers and sessions. `LocalHost` performs them, and `RemoteHost`
 * asks another host to perform them. `Calls` lists the operations: one for each row of the table in `rpc-table.ts`. Their
 * parameters contain full server ids.
 */
export interface Host extends Calls {
  /** Null if the fleet is on one host. */
  readonly name: string | null;
  /** Yields the bytes that are added to the log of a server, until the signal aborts. */
  followLog(id: string, at: LogPosition, signal: AbortSignal): AsyncIterable<Buffer>;
}
