import { FleetError, isFleetError, quote } from "../../base/errors.js";
import { encodeMessage } from "../../runtime/wire/frames.js";
import { RpcError } from "../../runtime/wire/rpc-client.js";
import type { RpcId } from "../../runtime/wire/scan.js";

/** The JSON-RPC code of the fleet's own refusals. `data.code` names the refusal. */
export const REFUSED = -32003;
/** The JSON-RPC code for an unknown method. Clients use it to find out which methods a server supports. */
const METHOD_NOT_FOUND = -32601;
/** The runtime's code for a wrong token (measured with 1.0.85). */
export const AUTHENTICATION_FAILED = -32002;
export const AUTHENTICATION_REQUIRED = -32001;

/**
 * The error answer that the client gets. A refusal of another front door passes unchanged. For a bug, the client gets
 * no details, because only the log may have them.
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
  const hint = 'An operator can allow it with "session": {"host": "owner"}';
  return methodDenied(method, `${why}, which session.host does not allow. ${hint}`);
}

/** @param setting the parameter that causes the refusal; left out if the method itself does */
export function approvalDenied(method: string, setting?: string): FleetError {
  const cause = setting === undefined ? "it" : JSON.stringify(setting);
  const hint = 'An operator can allow it with "session": {"approve": "ask"}';
  return methodDenied(method, `${cause} may approve tools, which session.approve does not allow. ${hint}`);
}

/**
 * The refusal for a session that does not exist or that belongs to another user. A client cannot tell the two cases
 * apart, so it does not learn which ids other users have. The message begins like the runtime's own message, because
 * clients check for that text.
 */
export function noSuchSession(sessionId: string): FleetError {
  const message = `Session not found for sessionId: ${quote(sessionId)}, or it belongs to another user.`;
  return new FleetError("FLEET_SESSION_NOT_FOUND", message);
}

export function doorDraining(): FleetError {
  const message = "The front door is about to close and takes no new turns. Connect again.";
  return new FleetError("FLEET_POOL_DRAINING", message);
}

export function tokenEnded(): FleetError {
  return new FleetError("FLEET_TOKEN_REFUSED", "The token of this connection was revoked or has expired.");
}

/** @param limitBytes how many bytes all unanswered requests of a client may have together */
export function requestsExhausted(limitBytes: number): FleetError {
  return new FleetError(
    "FLEET_LIMIT_REACHED",
    `The unanswered requests of this connection have more than ${limitBytes} bytes (serve.maxFrame).`,
    { suggestions: ["Wait for the answers to earlier requests.", "Raise serve.maxFrame."], limit: "serve.maxFrame" },
  );
}

/** The error that ends the work for a client that has gone. No client gets it. */
export function clientGone(): FleetError {
  return new FleetError("FLEET_TURN_FAILED", "The client has disconnected.");
}

/** The message of the `session.error` that the door sends when a turn ends with its server. */
export const SERVER_ENDED = "The server ended during the turn. The session still works: send the prompt again.";

export function serverLost(what: string): FleetError {
  return new FleetError("FLEET_SERVER_LOST", `The server ended before ${what}. Send the request again.`);
}
