import type { Config } from "../config/schema.js";
import type { FleetErrorCode } from "../errors.js";
import type { HostDirectory } from "../hosts/directory.js";
import type { ServerRecord } from "../model/server.js";
import type { Pool } from "../pool/pool.js";
import type { Sessions } from "../sessions/sessions.js";
import type { Store } from "../store/ports.js";
import type { Params } from "./wire/client-message.js";

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

/** One completed request of a client, for metrics and access logs. It contains nothing of the conversation. */
export interface RequestReport {
  user: string;
  /** A method of the table, or `unknown`, so that a client cannot make up labels. */
  method: string;
  /** `lost`: the server ended before it answered; `abandoned`: the client hung up before the answer. */
  outcome: "answered" | "failed" | "denied" | "lost" | "abandoned";
  /** The error's code, if the request was refused or lost. */
  code?: FleetErrorCode;
  /** From the arrival of the request to its answer, in milliseconds. */
  ms: number;
}

/** Something that happened at the front door, for a log. It contains no token, and nothing of the conversation. */
export interface DoorEvent {
  event:
    | "connected"
    | "host-connected"
    | "closed"
    | "token-refused"
    | "protocol-error"
    | "denied"
    | "dropped"
    | "server-lost"
    | "server-ended"
    | "host-lost"
    | "session-reopened"
    | "failed";
  /** The client's address, without its port. */
  address: string;
  user?: string;
  method?: string;
  sessionId?: string;
  code?: FleetErrorCode;
  /** The limit that was reached. */
  limit?: string;
  /** A description for people. */
  detail?: string;
}

/** Listeners for what happens at the front door. They must not throw. */
export interface DoorListeners {
  onRequest?: (report: RequestReport) => void;
  onEvent?: (event: DoorEvent) => void;
}
