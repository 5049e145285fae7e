import { createHash } from "node:crypto";

/*
 * Prepares text for a message: makes it harmless to a terminal, and removes possible secrets. `quote()` of errors.ts is
 * for short values. These functions are for paths and the output of other programs, which must not be shortened.
 */

/** Escapes control, zero-width and bidirectional characters. */
export function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, escapeCharacter);
}

/**
 * As {@link printable}, for a text of several lines. Keeps newlines, tabs, soft hyphens, and the joiners and direction
 * marks that scripts and emoji need.
 */
export function printableLines(text: string): string {
  if (/^[\n\t\x20-\x7e]*$/.test(text)) return text;
  const lines = text.replaceAll("\r\n", "\n");
  return lines.replace(/(?![\n\t\u200c-\u200f\u00ad])[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, escapeCharacter);
}

/** JSON for people and programs. Escapes the characters that a terminal interprets and that JSON allows as they are. */
export function printableJson(value: unknown, indent?: number): string {
  const json = JSON.stringify(value, null, indent);
  return json.replace(/(?!\n)[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (character) => {
    const units = character.split("").map((unit) => unit.charCodeAt(0).toString(16).padStart(4, "0"));
    return units.map((unit) => `\\u${unit}`).join("");
  });
}

function escapeCharacter(character: string): string {
  return `\\u{${character.codePointAt(0)?.toString(16)}}`;
}

/** A number of things: "1 server", "2 servers". */
export function countOf(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

/** Ends a message with a full stop, so that another sentence can follow. */
export function asSentence(message: string): string {
  return /[.?!]$/.test(message) ? message : `${message}.`;
}

export function sha256(text: string | Uint8Array): string {
  return createHash("sha256").update(text).digest("hex");
}

/** Quotes a path as one shell word, for a command that the user can paste. */
export function shellQuote(path: string): string {
  return /^[\w/.@%+,:=-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`;
}

/**
 * Compares two strings by code units, for `sort`. This is enough for ids and ISO 8601 times. The first call of
 * `localeCompare` would take 6 ms (Node.js 20), because it loads a collator.
 */
export function compareText(a: string, b: string): number {
  if (a === b) return 0;
  return a < b ? -1 : 1;
}

const TOKENS = [
  // GitHub's own prefixes: https://github.blog/engineering/behind-githubs-new-authentication-token-formats/
  /\b(?:gh[a-z]_|github_pat_)\w+/g,
  // Tokens that the fleet makes.
  /\bcf[tp]_[\w-]{43,}/g,
  // Model vendors' keys and JSON web tokens.
  /\b(?:sk-|eyJ)[\w.+/=-]{8,}/g,
];
/** A long run that mixes letters and digits is more likely a secret than a word. */
const LONG_RUN = /(?<![\w+/=-])(?=[\w+/=-]*\d)(?=[\w+/=-]*[A-Za-z])[\w+=-]{20,}/g;

/** Removes credentials from URLs, and everything that looks like a token. */
export function redact(text: string): string {
  return redactTokens(text).replace(LONG_RUN, "***");
}

/** Like {@link redact}, but keeps long names, such as "claude-sonnet-4-20250514". */
export function redactTokens(text: string): string {
  // Hide everything up to the last "@", because a password may contain a "/" or an "@".
  const safe = text.replace(/:\/\/\S*@/g, "://***@");
  return TOKENS.reduce((left, token) => left.replace(token, "***"), safe);
}

export function holdsGitHubToken(text: string): boolean {
  return /gh[a-z]_\w|github_pat_/.test(text);
}
