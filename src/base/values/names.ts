import { distance } from "fastest-levenshtein";
import { FleetError, quote } from "../errors.js";
import { blankFault, nameCharacter, textFault } from "./text.js";

/**
 * Properties that every object has. A plain object with users or sessions as keys must not get one of these as a key.
 */
const RESERVED = new Set(Object.getOwnPropertyNames(Object.prototype).concat("prototype"));

export const ALLOWED_USER =
  'an id of letters, digits and . _ @ + - (at most 128 bytes), not starting with . or -, such as "alice"';

/**
 * States why a text is not the id of a user or of a session. `allowed` matches each character that may be in it.
 * `length` is the reason if only the length is wrong.
 */
export function idFault(text: string, allowed: RegExp, length: string): string {
  if (text === "") return "is empty";
  if (isReserved(text)) return "is a reserved word";
  const wrong = [...text].find((character) => !allowed.test(character));
  if (wrong !== undefined) return `contains ${nameCharacter(wrong)}`;
  if (text === "." || text === "..") return "stands for a folder";
  return /^(?:[.-]|\p{M})/u.test(text) ? `starts with ${quote(text[0])}` : length;
}

/** States why a text is not the id of a user: "is empty", "contains a space". */
export function userFault(text: string): string {
  return idFault(text, /[\p{L}\p{M}\p{Nd}._@+-]/u, `has ${Buffer.byteLength(text)} bytes`);
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

/**
 * The tools that `session.tools.getBuiltinDescriptors` of runtime 1.0.85 lists (a test compares them), and `write_bash`
 * of other versions.
 */
export const BUILTIN_TOOLS: ReadonlySet<string> = new Set(
  `apply_patch ask_user bash context_board create create_pull_request edit exit_plan_mode factories_manage
  fetch_copilot_cli_documentation generic_tool_search glob grep list_agents list_bash manage_schedule read_agent read_bash
  read_inbox reply_to_comment run_factory send_inbox skill sql stop_bash str_replace_editor task task_complete
  tool_search_tool update_todo view web_fetch write_agent write_bash`.split(/\s+/),
);

/** Tools that do not reach files, programs or the network, and do not start an agent that could. */
const HARMLESS = new Set(
  "ask_user exit_plan_mode fetch_copilot_cli_documentation generic_tool_search task_complete tool_search_tool update_todo".split(
    " ",
  ),
);

/**
 * Whether a tool with this name may let the model reach the server's files or programs. Custom tools run at the client.
 */
export function reachesFiles(pattern: string): boolean {
  return !pattern.startsWith("custom:") && !HARMLESS.has(pattern.replace(/^builtin:/, ""));
}

/** In characters. */
const LONGEST_LABEL = 200;

/** Checks a short text that lists and events show on one line. */
export function parseLabel(text: string, name: string): string {
  const fault = blankFault(text) ?? textFault(text, { characters: /\P{Cc}/u, longest: LONGEST_LABEL });
  if (fault === null) return text;
  const allowed = `1 to ${LONGEST_LABEL} characters without control characters`;
  throw new FleetError("FLEET_USAGE_INVALID", `${name} is ${quote(text)}, ${fault}. Allowed: ${allowed}`, {
    suggestions: ['Give a short text, such as "review".'],
  });
}

/** The items that a user may have meant by the misspelled text `written`: at most three, the nearest first. */
export function nearestOf<Item>(written: string, items: Iterable<Item>, textOf: (item: Item) => string): Item[] {
  const most = mostSlips(written);
  const ranked = Array.from(items, (item) => ({
    item,
    cost: costOf(written.toLowerCase(), textOf(item).toLowerCase()),
  }));
  return ranked
    .filter(({ cost }) => cost <= most)
    .sort((a, b) => a.cost - b.cost)
    .slice(0, 3)
    .map(({ item }) => item);
}

/** The number of wrong, missing or extra letters. Two swapped letters count once. */
export function slips(written: string, text: string): number {
  const count = distance(written, text);
  return count === 2 && lettersOf(written) === lettersOf(text) ? 1 : count;
}

/** How many slips a word can have and still be recognized. With more, a suggestion is a guess. */
export function mostSlips({ length }: string): number {
  if (length < 2) return 0;
  return length < 6 ? 1 : 2;
}

/** The cost of a match. If `written` is the beginning of `text`, the whole missing rest counts as one slip. */
function costOf(written: string, text: string): number {
  return text.startsWith(written) && written !== "" ? Math.min(1, text.length - written.length) : slips(written, text);
}

function lettersOf(text: string): string {
  return [...text].sort().join("");
}
