import { randomUUID } from "node:crypto";
import { FleetError, option, quote } from "./errors.js";
import { ALLOWED_USER, idFault, isReserved, readUser, userFault } from "./values/names.js";
import { blankFault, printableLines, sha256, textFault } from "./values/text.js";

/** Checks a user id. Returns it in Unicode normal form C. */
export function validateUser(value: string, name = option("user")): string {
  const user = typeof value === "string" ? readUser(value) : null;
  if (user !== null) return user;
  const why = userFault(String(value));
  throw new FleetError(
    "FLEET_USAGE_INVALID",
    `${name} ${quote(value)} is not a user id: it ${why}. Allowed: ${ALLOWED_USER}`,
    { suggestions: ['Use an id such as "alice".'] },
  );
}

/**
 * A digest of a user id for names of files. Because of it, two users whose ids differ only in case have different files
 * on any disk.
 */
export function userDigest(user: string): string {
  return sha256(user).slice(0, 32);
}

/** The idempotency keys that the fleet accepts. */
export const IDEMPOTENCY_KEY = /^[\x21-\x7e]{1,255}$/;
export const IDEMPOTENCY_KEY_ALLOWED = "1 to 255 visible ASCII characters";

/** The name of the record of an idempotency key. */
export function keyDigest(key: string): string {
  return sha256(key).slice(0, 32);
}

const ALLOWED_SESSION =
  'an id of A-Z, a-z, 0-9, ".", "_" and "-" (at most 128 characters), not starting with "-", such as "review-1"';
const SESSION = /^[A-Za-z0-9._-]{1,128}$/;

/** Whether the text may be the id of a session, and so the name of its folder. */
export function isSessionId(text: string): boolean {
  return SESSION.test(text) && text !== "." && text !== "..";
}

/** Checks a validated id again, because it becomes part of a path. */
export function assertSessionId(id: string): void {
  if (isSessionId(id)) return;
  throw new FleetError(
    "FLEET_USAGE_INVALID",
    `${quote(id)} is not a session id. Allowed: 1 to 128 letters, digits, ".", "_" and "-", other than "." and ".."`,
  );
}

/**
 * Checks an id from a caller. The id must not look like an option, or be the name of a property that every object has.
 */
export function validateSessionId(value: string, name = option("sessionId")): string {
  if (typeof value !== "string" || !isSessionId(value) || value.startsWith("-") || isReserved(value)) {
    const text = String(value);
    const why = idFault(text, /[A-Za-z0-9._-]/, `has ${text.length} characters`);
    const message = `${name} ${quote(value)} is not a session id: it ${why}. Allowed: ${ALLOWED_SESSION}`;
    const isNew = name === "--id";
    throw new FleetError("FLEET_USAGE_INVALID", message, {
      suggestions: [isNew ? 'Use an id such as "review-1", or leave it out.' : "copilotfleet list"],
    });
  }
  return value;
}

/** Makes an id that nobody can guess. */
export function newSessionId(): string {
  return randomUUID();
}

/**
 * The id of a user's own server. It is always the same, so the user keeps the same home. Because of the digest, two
 * users whose ids differ only in case have two homes on any disk.
 */
export function serverIdOf(user: string): string {
  return `${labelOf(user, 24) || "user"}-${sha256(user).slice(0, 12)}`;
}

function labelOf(text: string, maxLength: number): string {
  return text
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, "-")
    .replace(/^-+|-+$/g, "")
    .slice(0, maxLength);
}

/** Tables on a terminal cut the middle out of a long id, and put this character there. */
const CUT = "…";

/** The text without the character that stands for the middle of an id. */
export function withoutCut(text: string): string {
  return text.replace(CUT, "");
}

/**
 * Whether the text is the beginning of the id, or the beginning and the end with `…` between them, as tables show it.
 */
export function mayMean(text: string, id: string): boolean {
  const [start = "", end = ""] = text.split(CUT, 2);
  const isLongEnough = id.length >= start.length + end.length;
  return start !== "" && isLongEnough && id.startsWith(start) && id.endsWith(end);
}

/** The ids that a person may mean: the id that equals the text, or else all ids for which {@link mayMean} is true. */
export function meantIds(text: string, ids: readonly string[]): string[] {
  return ids.includes(text) ? [text] : [...new Set(ids)].filter((id) => mayMean(text, id));
}

export const LONGEST_TITLE = 80;
export const ALLOWED_TITLE = `one line of at most ${LONGEST_TITLE} characters without control characters`;
const HARMLESS = /[^\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]|[\u200c-\u200f\u00ad]/u;

/** The title of a session that begins with this prompt: the prompt's first line, shortened. Null if it has no text. */
export function titleOf(prompt: string): string | null {
  const line = /[^\s\u200c-\u200f\u00ad].{0,200}/u.exec(prompt)?.[0];
  if (line === undefined) return null;
  const text = printableLines(line.replaceAll("\t", " ")).trimEnd();
  if (text.length <= LONGEST_TITLE) return text;
  // Do not keep half of a character that consists of two code units.
  const cut = text.slice(0, LONGEST_TITLE - 1).replace(/[\ud800-\udbff]$/, "");
  return `${cut.trimEnd()}…`;
}

export function titleFault(title: string): string | null {
  const rule = { characters: HARMLESS, longest: LONGEST_TITLE };
  return blankFault(title) ?? textFault(title, rule) ?? (titleOf(title) === null ? "which has no visible text" : null);
}

/** Checks the title that a user gives to a session. @throws FleetError `FLEET_USAGE_INVALID` */
export function validateTitle(title: string, name: string): string {
  const fault = titleFault(title);
  if (fault === null) return title;
  throw new FleetError("FLEET_USAGE_INVALID", `${name} is ${quote(title)}, ${fault}. Allowed: ${ALLOWED_TITLE}`, {
    suggestions: ['Give a short title in one line, such as "review".'],
  });
}
