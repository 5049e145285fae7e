import { blankFault } from "../../config/values/text-fault.js";
import { FleetError, quote } from "../../errors.js";

/** The prefix that marks a word as prompt text. No word contains it already, because process arguments have no NUL. */
const MARK = "\0";

/**
 * Prefixes words that begin with a hyphen but are a prompt, so that oclif does not take "- fix the bug" for a flag. A
 * word that looks like a flag ("--usr") stays a flag, because it may be a typing error. Words after `--` need no
 * prefix, because oclif never takes them for flags. {@link unmarked} removes the prefix.
 */
export function markPrompts(argv: readonly string[]): string[] {
  const end = argv.indexOf("--");
  const own = end === -1 ? argv : argv.slice(0, end);
  return [...own.map(marked), ...argv.slice(own.length)];
}

/** Returns the text without the prefix, as the user typed it. */
export function unmarked(text: string): string {
  return text.startsWith(MARK) ? text.slice(MARK.length) : text;
}

function marked(word: string): string {
  const [, flag = "", value] = /^(--prompt=)(-.+)$/s.exec(word) ?? [];
  if (value !== undefined) return `${flag}${MARK}${value}`;
  // A flag's name begins with a letter and does not contain white space.
  return word.length > 1 && word.startsWith("-") && !/^--?\p{L}[^\s=]*(?:=|$)/u.test(word) ? `${MARK}${word}` : word;
}

/** Returns the given text, or standard input if the text is "-". @throws FleetError if the prompt is blank. */
export async function readPrompt(given: string): Promise<string> {
  const prompt = given === "-" ? await readStandardInput() : unmarked(given);
  const fault = blankFault(prompt);
  if (fault === null) return prompt;
  const where = given === "-" ? " on standard input" : "";
  throw new FleetError("FLEET_USAGE_INVALID", `The prompt${where} is ${quote(prompt)}, ${fault}. Give a text.`, {
    suggestions: ["Write the text in quotes, or write - and give the text on standard input."],
  });
}

async function readStandardInput(): Promise<string> {
  process.stdin.setEncoding("utf8");
  let text = "";
  for await (const piece of process.stdin) text += piece;
  return text;
}
