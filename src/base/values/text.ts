import { createHash } from "node:crypto";

/*
 * Prepares text for a message: makes it harmless to a terminal, and removes possible secrets. `quote()` is for short
 * values. The other functions are for paths and the output of other programs, which must not be shortened.
 */

/** The secret parts of the fleet's own tokens, and of the tokens of its proxies. */
const SECRET = /(?<=cft_[a-z0-9]{16}_|cfp_)[\w-]{43}/g;

/**
 * Quotes a value from outside for a message. Escapes control, zero-width and bidirectional characters, so that the
 * value cannot forge a log line or reorder the text on a terminal. Shortens long values. Hides tokens of the fleet,
 * because a user may give one in place of an id.
 */
export function quote(value: unknown): string {
  return quoteUpTo(80, value);
}

/** Like {@link quote}, with a length of your own. @param longest in characters */
export function quoteUpTo(longest: number, value: unknown): string {
  const given = typeof value === "string" ? value : (JSON.stringify(value) ?? String(value));
  const text = given.replace(SECRET, "***");
  const short = text.length > longest ? `${text.slice(0, longest - 3)}…` : text;
  return `"${printable(short.replace(/["\\]/g, "\\$&"))}"`;
}

/** Turns ["a", "b", "c"] into "a, b or c". */
export function oneOf(values: readonly string[]): string {
  return values.join(", ").replace(/, (?=[^,]*$)/, " or ");
}

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

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export function parseObject(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return isObject(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

/*
 * Each function states why a text is refused, as a part of a sentence: "which contains a space". It returns null if it
 * finds no reason.
 */

/** The rule for a text: the characters that it may have at each place, and its length. */
interface TextRule {
  characters: RegExp;
  first?: RegExp;
  last?: RegExp;
  /** The length, in characters. */
  longest?: number;
}

export function textFault(text: string, { characters, first, last, longest = Infinity }: TextRule): string | null {
  if (text === "") return "which is empty";
  const wrong = [...text].find((character) => !characters.test(character));
  if (wrong !== undefined) return `which contains ${nameCharacter(wrong)}`;
  const [begin, end] = [text.slice(0, 1), text.slice(-1)];
  if (first?.test(begin) === false) return `which starts with ${quote(begin)}`;
  if (last?.test(end) === false) return `which ends with ${quote(end)}`;
  return text.length > longest ? `which has ${text.length} characters` : null;
}

/** Names a character in a message. */
export function nameCharacter(character: string): string {
  return character === " " ? "a space" : quote(character);
}

/** States why a text counts as blank; null if it does not. */
export function blankFault(text: string): string | null {
  if (text === "") return "which is empty";
  if (text.trim() !== "") return null;
  return `which contains only ${/^ +$/.test(text) ? "spaces" : "white space"}`;
}

/** The end of a message about a value that should be the name of a variable. The value may be the secret itself. */
export const NOT_A_VARIABLE = "is not the name of a variable, and is not shown, because it may be a secret";

export function wholeNumberFault(text: string, [min, max]: readonly [number, number]): string | null {
  if (!/^-?\d+$/.test(text)) return blankFault(text) ?? "which is not a whole number";
  if (Number(text) > max) return `which is more than ${max}`;
  return Number(text) < min ? `which is less than ${min}` : null;
}

const WITHOUT_SPACE = { characters: /\S/ };

/** States why a text is not `host:port`. */
export function addressFault(text: string): string {
  return textFault(text, WITHOUT_SPACE) ?? "which is not host:port";
}

export function urlFault(text: string): string | null {
  const fault = /^https?:\/\//.test(text) ? null : "which does not start with http:// or https://";
  const login = /^[^/]*\/\/[^/]*@/.test(text) ? "which contains a user or a password" : null;
  return textFault(text, WITHOUT_SPACE) ?? fault ?? login;
}

export function storeFault(text: string): string | null {
  const fault = /^rediss?:\/\//.test(text) ? null : 'which is neither "file" nor the URL of a Redis';
  const login = /^[^/]*\/\/[^/@]*:[^/]*@/.test(text) ? "which contains a password" : null;
  return textFault(text, WITHOUT_SPACE) ?? fault ?? login;
}
