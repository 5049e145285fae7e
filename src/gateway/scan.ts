/** Where a member of a JSON object stands in its text. */
export interface Member {
  /** As it is written, without its quotes; escapes are not resolved. */
  key: string;
  /** The value's first byte, and the one after its last. */
  start: number;
  end: number;
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const COLON = 0x3a;
const COMMA = 0x2c;
const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;
const OPEN_BRACKET = 0x5b;
const CLOSE_BRACKET = 0x5d;

/**
 * The members of the object that begins at `from`, without parsing what is in them: strings are leapt over, so megabytes
 * cost little. Exact for every text that is JSON. For one that is not, it may find members that no parser would: whoever
 * passes the text on relies on its reader to refuse it, or parses it first.
 *
 * @param maxDepth how deep it may be nested, the object itself counted
 * @returns null when there is no object, or it is nested too deeply.
 */
export function scanObject(text: Buffer, from = 0, maxDepth = Number.POSITIVE_INFINITY): Member[] | null {
  let at = skipBlanks(text, from);
  if (text[at] !== OPEN_BRACE) return null;
  const members: Member[] = [];
  at = skipBlanks(text, at + 1);
  if (text[at] === CLOSE_BRACE) return members;
  for (;;) {
    if (text[at] !== QUOTE) return null;
    const keyEnd = skipString(text, at);
    if (keyEnd === -1) return null;
    const key = text.toString("utf8", at + 1, keyEnd - 1);
    at = skipBlanks(text, keyEnd);
    if (text[at] !== COLON) return null;
    const start = skipBlanks(text, at + 1);
    const end = skipValue(text, start, maxDepth - 1);
    if (end === -1) return null;
    members.push({ key, start, end });
    at = skipBlanks(text, end);
    if (text[at] === CLOSE_BRACE) return members;
    if (text[at] !== COMMA) return null;
    at = skipBlanks(text, at + 1);
  }
}

/** The value of a member that is a string, if it has no escapes in it; undefined for anything else. */
export function plainString(text: Buffer, { start, end }: Member): string | undefined {
  if (text[start] !== QUOTE) return undefined;
  const value = text.toString("utf8", start + 1, end - 1);
  return value.includes("\\") ? undefined : value;
}

function skipBlanks(text: Buffer, from: number): number {
  let at = from;
  for (let byte = text[at]; byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09; byte = text[at]) at++;
  return at;
}

/** @returns the byte after the closing quote, or -1. */
function skipString(text: Buffer, from: number): number {
  for (let at = from + 1; ; at++) {
    at = text.indexOf(QUOTE, at);
    if (at === -1) return -1;
    let before = at - 1;
    while (text[before] === BACKSLASH) before--;
    // An odd number of backslashes escapes the quote.
    if ((at - before) % 2 === 1) return at + 1;
  }
}

function skipValue(text: Buffer, from: number, maxDepth: number): number {
  const first = text[from];
  if (first === QUOTE) return skipString(text, from);
  if (first === OPEN_BRACE || first === OPEN_BRACKET) return skipNested(text, from, maxDepth);
  let at = from;
  for (let byte = text[at]; isScalar(byte); byte = text[at]) at++;
  return at === from ? -1 : at;
}

/** Bytes of numbers, true, false and null. */
function isScalar(byte: number | undefined): boolean {
  if (byte === undefined) return false;
  return (byte >= 0x30 && byte <= 0x39) || (byte >= 0x61 && byte <= 0x7a) || "+-.E".includes(String.fromCharCode(byte));
}

function skipNested(text: Buffer, from: number, maxDepth: number): number {
  let depth = 0;
  for (let at = from; at < text.length; at++) {
    const byte = text[at];
    if (byte === QUOTE) {
      at = skipString(text, at) - 1;
      if (at < 0) return -1;
    } else if (byte === OPEN_BRACE || byte === OPEN_BRACKET) {
      if (++depth > maxDepth) return -1;
    } else if (byte === CLOSE_BRACE || byte === CLOSE_BRACKET) {
      if (--depth === 0) return at + 1;
    }
  }
  return -1;
}
