import { quote } from "../../errors.js";

/*
 * Each function states why a text is refused, as a part of a sentence: "which contains a space". It returns null if it
 * finds no reason.
 */

/** The rule for a text: the characters that it may have at each place, and its length. */
export interface TextRule {
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
  if (/^-?\d+$/.test(text)) {
    if (Number(text) > max) return `which is more than ${max}`;
    return Number(text) < min ? `which is less than ${min}` : null;
  }
  if (/^-?\d+\.\d+$/.test(text)) return "which is not a whole number";
  const isOtherNotation = text.trim() !== "" && !Number.isNaN(Number(text));
  return isOtherNotation ? "which is not written in digits alone" : (blankFault(text) ?? "which is not a number");
}

/** States why a text is not `host:port`. */
export function addressFault(text: string): string | null {
  const fault = textFault(text, { characters: /\S/ });
  if (fault !== null) return fault;
  if (/^\d+$/.test(text)) return "which has no host";
  if (!/:[^:\]]*$/.test(text)) return "which has no port";
  return text.startsWith(":") ? "which has no host" : "which is not host:port";
}

export function urlFault(text: string): string | null {
  const fault = textFault(text, { characters: /\S/ });
  if (fault !== null) return fault;
  if (!/^https?:\/\//.test(text)) return "which does not start with http:// or https://";
  return /^[^/]*\/\/[^/]*@/.test(text) ? "which contains a user or a password" : null;
}

export function storeFault(text: string): string | null {
  const fault = textFault(text, { characters: /\S/ });
  return fault ?? (/^rediss?:\/\//.test(text) ? null : 'which is neither "file" nor the URL of a Redis');
}
