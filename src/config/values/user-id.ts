import { quote } from "../../errors.js";
import { nameCharacter } from "./text-fault.js";

/**
 * Properties that every object has. A plain object with users or sessions as keys must not get one of these as a key.
 */
const RESERVED = new Set(Object.getOwnPropertyNames(Object.prototype).concat("prototype"));

export const ALLOWED_USER =
  'an id of letters, digits and . _ @ + - (at most 128 bytes), not starting with . or -, such as "alice"';

/**
 * The text after "Allowed:" in a message about an id. For a reserved word or the name of a folder (`.` or `..`), it
 * asks for another id, because such a text may fit `rule` and is still refused.
 */
export function allowedId(text: string, rule: string): string {
  return isReserved(text) || isFolder(text) ? rule.replace(/^an id/, "another id") : rule;
}

/**
 * States why a text is not the id of a user or of a session. `allowed` matches each character that may be in it.
 * `length` is the reason if only the length is wrong.
 */
export function idFault(text: string, allowed: RegExp, length: string): string {
  if (text === "") return "is empty";
  if (isReserved(text)) return "is a reserved word";
  const wrong = [...text].find((character) => !allowed.test(character));
  if (wrong !== undefined) return `contains ${nameCharacter(wrong)}`;
  if (isFolder(text)) return "stands for a folder";
  return /^(?:[.-]|\p{M})/u.test(text) ? `starts with ${quote(text[0])}` : length;
}

/** States why a text is not the id of a user: "is empty", "contains a space". */
export function userFault(text: string): string {
  return idFault(text, /[\p{L}\p{M}\p{Nd}._@+-]/u, `has ${Buffer.byteLength(text)} bytes`);
}

/** An id that is similar to `text`, which is not an id; `usual` if there is none. */
export function similarId(text: string, usual: string): string {
  const plain = text
    .slice(0, 40)
    .replace(/[^A-Za-z0-9_]+/g, "-")
    .replace(/^-+|-+$/g, "");
  if (plain === "") return usual;
  return isReserved(text) ? `${plain}-1` : plain;
}

function isFolder(text: string): boolean {
  return text === "." || text === "..";
}

/** Whether the text is reserved, so that it cannot be an id. */
export function isReserved(text: string): boolean {
  return RESERVED.has(text);
}

/**
 * Returns a user id in Unicode normal form C, so that each name has one spelling; null if the text is not a user id. A
 * user id consists of letters and digits of any script plus `. _ @ + -`, has 1 to 128 bytes of UTF-8, and does not
 * start with `.` or `-`.
 */
export function readUser(text: string): string | null {
  const user = text.normalize("NFC");
  const bytes = Buffer.byteLength(user);
  const isUser = bytes >= 1 && bytes <= 128 && isUserName(user) && !/^[.-]/.test(user) && !isReserved(user);
  return isUser ? user : null;
}

/** Tries an ASCII pattern first, because Node.js 20 takes a millisecond to build a pattern with Unicode properties. */
function isUserName(user: string): boolean {
  return /^[A-Za-z0-9._@+-]+$/.test(user) || (/^[\p{L}\p{M}\p{Nd}._@+-]+$/u.test(user) && !/^\p{M}/u.test(user));
}
