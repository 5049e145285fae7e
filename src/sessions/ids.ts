import { randomUUID } from "node:crypto";
import { FleetError, option, quote } from "../errors.js";

/** Names every object has: as a key of a plain object they would mean something else than a user or a session. */
const RESERVED = new Set(Object.getOwnPropertyNames(Object.prototype).concat("prototype"));

const SESSION = /^[A-Za-z0-9._-]{1,128}$/;

/**
 * A user id as the contract allows it: letters and digits of any script plus `. _ @ + -`, 1 to 128 bytes of UTF-8,
 * not starting with `.` or `-`. Returns it in Unicode normal form C, so that one name has one spelling.
 *
 * @param name where the value came from, for the message
 * @throws FleetError `FLEET_USER_INVALID`.
 */
export function validateUser(value: string, name = option("user")): string {
  const user = typeof value === "string" ? value.normalize("NFC") : "";
  const bytes = Buffer.byteLength(user);
  if (bytes < 1 || bytes > 128 || !isUserName(user) || /^[.-]/.test(user) || RESERVED.has(user)) {
    const why = RESERVED.has(user) ? "is a reserved word" : "is not a user id";
    throw new FleetError(
      "FLEET_USER_INVALID",
      `${name} ${quote(value)} ${why}: allowed are 1 to 128 bytes of letters, digits and . _ @ + -, not starting with . or -`,
    );
  }
  return user;
}

/** Node.js 20 takes a millisecond to build patterns with Unicode properties: ids in ASCII do without them. */
function isUserName(user: string): boolean {
  return /^[A-Za-z0-9._@+-]+$/.test(user) || (/^[\p{L}\p{M}\p{Nd}._@+-]+$/u.test(user) && !/^\p{M}/u.test(user));
}

/** A session id in the runtime's alphabet. @throws FleetError `FLEET_SESSION_ID_INVALID`. */
export function validateSessionId(value: string, name = option("sessionId")): string {
  if (
    typeof value !== "string" ||
    !SESSION.test(value) ||
    /^\.{1,2}$/.test(value) ||
    value.startsWith("-") ||
    RESERVED.has(value)
  ) {
    const why = RESERVED.has(value) ? "is a reserved word" : "is not a session id";
    throw new FleetError(
      "FLEET_SESSION_ID_INVALID",
      `${name} ${quote(value)} ${why}: allowed are 1 to 128 of A-Z a-z 0-9 . _ -, not starting with -, and not . or ..`,
    );
  }
  return value;
}

/** A new id that nobody can guess; the purpose stands in front for people, and means nothing to the fleet. */
export function newSessionId(purpose: string | null): string {
  const label = (purpose ?? "")
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, "-")
    .replace(/^-+|-+$/g, "")
    .slice(0, 40);
  return label === "" ? randomUUID() : `${label}-${randomUUID()}`;
}
