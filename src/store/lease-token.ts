import { createHash, timingSafeEqual } from "node:crypto";
import { FleetError, quote } from "../errors.js";

/** A token has 32 random bytes: its hash needs no salt, and cannot be turned back. */
export function hashToken(token: string): string {
  return createHash("sha256").update(token).digest("hex");
}

/** How long it takes says nothing about where the two differ. */
export function isSameHash(hash: string, other: string): boolean {
  const [a, b] = [Buffer.from(hash), Buffer.from(other)];
  return a.length === b.length && timingSafeEqual(a, b);
}

/** The same for a wrong token, a lease that ended, and a session that is not there: it tells a stranger nothing. */
export function leaseLost(sessionId: string, cause?: unknown): FleetError {
  return new FleetError("FLEET_LEASE_LOST", `This token has no lease on session ${quote(sessionId)}, or no longer.`, {
    suggestions: [`copilotfleet lock ${sessionId} --show`],
    cause,
  });
}
