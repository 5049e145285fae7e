import { FleetError, isFleetError, quote } from "../../errors.js";
import { encodeMessage } from "../../runtime/wire/frames.js";
import { RpcError } from "../../runtime/wire/rpc-client.js";
import type { RpcId } from "../../runtime/wire/server-message.js";

/** The JSON-RPC code of the fleet's own refusals. `data.code` names the refusal. */
export const REFUSED = -32003;
/** The JSON-RPC code for an unknown method. It shows clients which methods a server supports. */
const METHOD_NOT_FOUND = -32601;
/** The runtime's code for a wrong token (measured with 1.0.85). */
export const AUTHENTICATION_FAILED = -32002;
export const AUTHENTICATION_REQUIRED = -32001;

/**
 * A refusal in the form that the client gets. Refusals of another front door pass unchanged. The details of a bug stay
 * in the log.
 */
export function refusalFrame(id: RpcId | null, error: unknown): Buffer {
  if (error instanceof RpcError && error.fleetCode !== undefined) {
    return errorFrame(id, error.rpcCode, error.message, error.data);
  }
  const refusal = isFleetError(error)
    ? error
    : new FleetError("FLEET_INTERNAL", "The front door failed to handle this request.", { cause: error });
  const { code, message, retryable, retryAfterMs, limit } = refusal;
  const data = { code, retryable, retryAfterMs, limit };
  return errorFrame(id, code === "FLEET_METHOD_UNKNOWN" ? METHOD_NOT_FOUND : REFUSED, message, data);
}

/** @param data left out if undefined */
export function errorFrame(id: RpcId | null, rpcCode: number, message: string, data?: unknown): Buffer {
  return encodeMessage({ id, error: { code: rpcCode, message, data } });
}

export function methodDenied(method: string, why: string): FleetError {
  return new FleetError("FLEET_METHOD_DENIED", `${quote(method)} is not allowed here: ${why}.`);
}

export function methodUnknown(method: string): FleetError {
  return new FleetError("FLEET_METHOD_UNKNOWN", `Unhandled method ${quote(method)}: the front door does not know it.`);
}

/** @param why how the method reaches files or programs, as the middle of a sentence */
export function hostDenied(method: string, why: string): FleetError {
  return new FleetError(
    "FLEET_METHOD_DENIED",
    `${quote(method)} is not allowed here: ${why}, which session.host does not allow. An operator can allow it with "session": {"host": "owner"}.`,
  );
}

/** @param setting the parameter that causes the refusal; left out if the method itself does */
export function approvalDenied(method: string, setting?: string): FleetError {
  return new FleetError(
    "FLEET_METHOD_DENIED",
    `${quote(method)} is not allowed here: ${setting === undefined ? "it" : JSON.stringify(setting)} may approve tools, which session.approve does not allow. An operator can allow it with "session": {"approve": "ask"}.`,
  );
}

/**
 * The refusal for a session that does not exist and for another user's session, which look the same to the client. The
 * message begins like the runtime's own, because clients check for that.
 */
export function noSuchSession(sessionId: string): FleetError {
  return new FleetError(
    "FLEET_SESSION_NOT_FOUND",
    `Session not found for sessionId: ${quote(sessionId)}, or it belongs to another user.`,
  );
}

export function doorDraining(): FleetError {
  return new FleetError(
    "FLEET_DOOR_DRAINING",
    "The front door is about to close and takes no new turns. Connect again.",
  );
}

export function tokenEnded(): FleetError {
  return new FleetError("FLEET_TOKEN_REFUSED", "The token of this connection was revoked or has expired.");
}

/** @param limitBytes how much all open requests of a client together may have, in bytes */
export function requestsExhausted(limitBytes: number): FleetError {
  return new FleetError(
    "FLEET_REQUESTS_EXHAUSTED",
    `The unanswered requests of this connection have more than ${limitBytes} bytes (serve.maxFrame).`,
    { suggestions: ["Wait for the answers to earlier requests.", "Raise serve.maxFrame."] },
  );
}

/** The reason to give up work for a client that has gone. No client gets it. */
export function clientGone(): FleetError {
  return new FleetError("FLEET_TURN_FAILED", "The client has disconnected.");
}

/** The message that ends a turn that was cut. */
export const SERVER_ENDED = "The server ended during the turn. The session still works: send the prompt again.";

export function serverLost(what: string): FleetError {
  return new FleetError("FLEET_SERVER_LOST", `The server ended before ${what}. Send the request again.`);
}
