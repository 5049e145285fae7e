import type { Config } from "../config/schema.js";
import type { FleetErrorCode } from "../errors.js";
import type { HostDirectory } from "../hosts/directory.js";
import type { Pool } from "../pool/pool.js";
import type { Sessions } from "../sessions/sessions.js";
import type { ServerRecord, Store } from "../store/store.js";
import type { Params } from "./client-message.js";

/** What the front door needs of the fleet. */
export interface DoorContext {
  config: Config;
  store: Store;
  sessions: Sessions;
  directory: HostDirectory;
  pool: Pool;
}

/**
 * Runs `start`, or waits for the one that runs already for that server, until the signal aborts; for the others it goes on
 * then. `start` gets a signal of its own.
 */
export type Together = (
  serverId: string,
  signal: AbortSignal,
  start: (signal: AbortSignal) => Promise<ServerRecord>,
) => Promise<ServerRecord>;

/** What it needs besides, for other hosts. */
export interface DoorOwner extends DoorContext {
  /** Does what another host asks of this one, and gives what goes back as JSON. */
  control: (method: string, params: Params, signal: AbortSignal) => Promise<unknown>;
}

/** One request of a client, when it is over. For metrics and access logs: nothing of what was said is in it. */
export interface RequestReport {
  user: string;
  /** A method of the table, or `unknown`: a client cannot make up labels. */
  method: string;
  /** `lost`: its server ended before it answered; `abandoned`: its client hung up before that. */
  outcome: "answered" | "failed" | "denied" | "lost" | "abandoned";
  /** Of a refusal. */
  code?: FleetErrorCode;
  /** From the arrival of the request to its answer, in milliseconds. */
  ms: number;
}

/** Something that happened at the front door, for a log. Never a token, and nothing of what was said. */
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
  /** For people. */
  detail?: string;
}

/** How the front door tells its owner what happens. Neither may throw. */
export interface DoorListeners {
  onRequest?: (report: RequestReport) => void;
  onEvent?: (event: DoorEvent) => void;
}
