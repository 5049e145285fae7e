import { FleetError, isFleetError, quote } from "../errors.js";
import { RpcError } from "../runtime/client/raw-connection.js";
import type { RpcId } from "./client-message.js";
import type { DoorEvent } from "./context.js";
import { encodeBody } from "./frames.js";

/** The code of JSON-RPC for what the fleet itself refuses. `data.code` names the refusal. */
export const REFUSED = -32003;
/** As JSON-RPC has it, and the runtime answers: clients look for it to find out what a server can do. */
const METHOD_NOT_FOUND = -32601;
/** As the runtime answers a wrong token (measured with 1.0.85). */
export const AUTHENTICATION_FAILED = -32002;
export const AUTHENTICATION_REQUIRED = -32001;

export function encodeMessage(message: object): Buffer {
  return encodeBody(Buffer.from(JSON.stringify({ jsonrpc: "2.0", ...message })));
}

/** A refusal as its client gets it; that of another front door as it came. What a bug says of itself stays in the log. */
export function refusalFrame(id: RpcId | null, error: unknown): Buffer {
  if (error instanceof RpcError && error.fleetCode !== undefined) {
    return errorFrame(id, error.rpcCode, error.message, error.data);
  }
  const refusal = isFleetError(error)
    ? error
    : new FleetError("FLEET_INTERNAL", "The front door failed at this request.", { cause: error });
  const { code, message, retryable, retryAfterMs, limit } = refusal;
  const data = { code, retryable, retryAfterMs, limit };
  return errorFrame(id, code === "FLEET_METHOD_UNKNOWN" ? METHOD_NOT_FOUND : REFUSED, message, data);
}

/** @param data left out if undefined */
export function errorFrame(id: RpcId | null, rpcCode: number, message: string, data?: unknown): Buffer {
  return encodeMessage({ id, error: { code: rpcCode, message, data } });
}

/** What a log says of an error: of one that nobody meant to be thrown, also where that was. */
export function describe(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return isFleetError(error) || error instanceof RpcError ? String(error) : (error.stack ?? String(error));
}

/** What an event says of what failed. @param what of more than the error itself, for people */
export function failure(error: unknown, what?: string): Pick<DoorEvent, "code" | "detail"> {
  const detail = what === undefined ? describe(error) : `${what}: ${describe(error)}`;
  return isFleetError(error) ? { code: error.code, detail } : { detail };
}

export function methodDenied(method: string, why: string): FleetError {
  return new FleetError("FLEET_METHOD_DENIED", `${quote(method)} is not allowed here: ${why}.`);
}

export function methodUnknown(method: string): FleetError {
  return new FleetError("FLEET_METHOD_UNKNOWN", `Unhandled method ${quote(method)}: the front door does not know it.`);
}

/** @param why what of it reaches the disk or starts programs */
export function hostDenied(method: string, why: string): FleetError {
  return new FleetError(
    "FLEET_METHOD_DENIED",
    `${quote(method)} is not allowed here: ${why}, which session.host does not allow. An operator allows it by "session": {"host": "owner"}.`,
  );
}

/** @param setting the parameter that the method is refused for, if not for itself */
export function approvalDenied(method: string, setting?: string): FleetError {
  return new FleetError(
    "FLEET_METHOD_DENIED",
    `${quote(method)} is not allowed here: ${setting === undefined ? "it" : JSON.stringify(setting)} may approve tools, which session.approve does not allow. An operator allows it by "session": {"approve": "ask"}.`,
  );
}

/**
 * The same for a session that is not there and one that is somebody else's. It begins as the runtime's own answer does,
 * which clients look for.
 */
export function noSuchSession(sessionId: string): FleetError {
  return new FleetError(
    "FLEET_SESSION_NOT_FOUND",
    `Session not found for sessionId: ${quote(sessionId)}, or not this user's.`,
  );
}

export function doorDraining(): FleetError {
  return new FleetError(
    "FLEET_DOOR_DRAINING",
    "The front door is about to close and lets no new turns in. Connect again.",
  );
}

export function tokenEnded(): FleetError {
  return new FleetError("FLEET_TOKEN_REFUSED", "The token of this connection was revoked or has expired.");
}

/** @param limitBytes what all open requests of a client together may be */
export function requestsExhausted(limitBytes: number): FleetError {
  return new FleetError(
    "FLEET_REQUESTS_EXHAUSTED",
    `The requests of this connection that are not answered are more than ${limitBytes} bytes (serve.maxFrame).`,
    { suggestions: ["Wait for the answers to those that were sent before.", "Raise serve.maxFrame."] },
  );
}

/** Told to nobody: why what was done for a client is given up. */
export function clientGone(): FleetError {
  return new FleetError("FLEET_TURN_FAILED", "The client has gone.");
}

/** The end of a turn that was cut. */
export const SERVER_ENDED = "The server ended during the turn. The session goes on: send it again.";

export function serverLost(what: string): FleetError {
  return new FleetError("FLEET_SERVER_LOST", `The server ended before ${what}. Send it again.`);
}
