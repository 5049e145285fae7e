import { createHash, timingSafeEqual } from "node:crypto";
import { FleetError, quote } from "../errors.js";

/** The hash needs no salt and cannot be reversed, because a token has 32 random bytes. */
export function hashToken(token: string): string {
  return createHash("sha256").update(token).digest("hex");
}

/** Compares in constant time, so that the duration does not reveal where the two hashes differ. */
export function isSameHash(hash: string, other: string): boolean {
  const [a, b] = [Buffer.from(hash), Buffer.from(other)];
  return a.length === b.length && timingSafeEqual(a, b);
}

/**
 * The error is the same for a wrong token, an expired lease and a session that does not exist, so that a stranger
 * learns nothing from it.
 */
export function leaseLost(sessionId: string, cause?: unknown): FleetError {
  return new FleetError(
    "FLEET_LEASE_LOST",
    `This token does not hold the lease on session ${quote(sessionId)}, or the lease has ended.`,
    {
      suggestions: [`copilotfleet lock ${sessionId} --show`],
      cause,
    },
  );
}
