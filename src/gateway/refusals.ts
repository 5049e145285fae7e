import { FleetError, isFleetError, quote } from "../errors.js";
import type { RpcId } from "./client-message.js";
import { encodeBody } from "./frames.js";

/** The one code of JSON-RPC for all that the fleet itself refuses; which refusal it is stands in `data.code`. */
export const REFUSED = -32003;
/** As the runtime answers a wrong token (measured with 1.0.85). */
export const AUTHENTICATION_FAILED = -32002;
export const AUTHENTICATION_REQUIRED = -32001;

export function encodeMessage(message: object): Buffer {
  return encodeBody(Buffer.from(JSON.stringify({ jsonrpc: "2.0", ...message })));
}

/** A refusal as its client gets it. What a bug says of itself stays in the log. */
export function refusalFrame(id: RpcId | null, error: unknown): Buffer {
  const refusal = isFleetError(error)
    ? error
    : new FleetError("FLEET_INTERNAL", "The front door failed at this request.", { cause: error });
  const { code, message, retryable } = refusal;
  const data = { code, retryable };
  return encodeMessage({ id, error: { code: REFUSED, message, data } });
}

export function errorFrame(id: RpcId | null, rpcCode: number, message: string): Buffer {
  return encodeMessage({ id, error: { code: rpcCode, message } });
}

export function methodDenied(method: string, why: string): FleetError {
  return new FleetError("FLEET_METHOD_DENIED", `${quote(method)} is not allowed here: ${why}.`);
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

export function serverLost(what: string): FleetError {
  return new FleetError("FLEET_SERVER_LOST", `The server ended before ${what}. Send it again.`);
}
