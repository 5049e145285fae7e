import { type FleetErrorCode, isFleetError } from "../../base/errors.js";
import type { SignOnReport } from "../../identity/sign-on.js";
import { RpcError } from "../../runtime/wire/rpc-client.js";

/** One completed request of a client, for metrics and access logs. It contains nothing of the conversation. */
export interface RequestReport {
  user: string;
  /** A method in the table of methods, otherwise `unknown`, so that a client cannot create metric labels. */
  method: string;
  /** `lost`: the server ended before it answered; `abandoned`: the client disconnected before the answer. */
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
    | "tls-refused"
    | "certificate-replaced"
    | "certificate-problem"
    | "denied"
    | "dropped"
    | "server-lost"
    | "server-ended"
    | "host-lost"
    | "session-reopened"
    | "session-unloaded"
    | "failed";
  /** The client's address, without its port. */
  address: string;
  user?: string;
  method?: string;
  sessionId?: string;
  code?: FleetErrorCode;
  limit?: string;
  detail?: string;
}

/** Listeners for what happens at the front door. They must not throw. */
export interface DoorListeners {
  onRequest?: (report: RequestReport) => void;
  onSignOn?: (report: SignOnReport) => void;
  onEvent?: (event: DoorEvent) => void;
}

/** An event of one connection. The {@link Reporter} adds the connection's address and user. */
export type ConnectionEvent = Omit<DoorEvent, "address" | "user">;

export class Reporter {
  readonly #listeners: DoorListeners;
  readonly #connection: { readonly address: string };
  /** The connection's user, once it has shown a good token. */
  user: string | undefined;

  /** @param connection its `address` changes when a proxy names the client */
  constructor(listeners: DoorListeners, connection: { readonly address: string }) {
    this.#listeners = listeners;
    this.#connection = connection;
  }

  event(event: ConnectionEvent): void {
    const { address } = this.#connection;
    this.#listeners.onEvent?.({ ...event, address, ...(this.user === undefined ? {} : { user: this.user }) });
  }

  request(report: Omit<RequestReport, "user">): void {
    this.#listeners.onRequest?.({ ...report, user: this.user ?? "" });
  }
}

/**
 * The text of an error for the log. An error that is neither a `FleetError` nor a server's `RpcError` is a bug, so its
 * text includes the stack.
 */
export function describe(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return isFleetError(error) || error instanceof RpcError ? String(error) : (error.stack ?? String(error));
}

/**
 * The fields of an event that describe a failure.
 *
 * @param what a text to put before the error, for people who read the log
 */
export function failure(error: unknown, what?: string): Pick<DoorEvent, "code" | "limit" | "detail"> {
  const detail = what === undefined ? describe(error) : `${what}: ${describe(error)}`;
  if (!isFleetError(error)) return { detail };
  const { code, limit } = error;
  return { code, ...(limit === undefined ? {} : { limit }), detail };
}
