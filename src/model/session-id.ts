import { FleetError, quote } from "../errors.js";

const SESSION_ID = /^[A-Za-z0-9._-]{1,128}$/;

export function isSessionId(text: string): boolean {
  return SESSION_ID.test(text) && text !== "." && text !== "..";
}

/**
 * Callers have validated the id already. This is the last line of defence, because the id becomes part of a path.
 *
 * @throws FleetError `FLEET_SESSION_ID_INVALID`.
 */
export function assertSessionId(id: string): void {
  if (isSessionId(id)) return;
  throw new FleetError(
    "FLEET_SESSION_ID_INVALID",
    `${quote(id)} is not a session id. Allowed: 1 to 128 letters, digits, ".", "_" and "-", other than "." and ".."`,
  );
}
