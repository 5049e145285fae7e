import { FleetError } from "../errors.js";

/** A word that begins with it is text. No argument of a process can contain this character. */
const MARK = "\0";

/**
 * Marks the words of a command line that are a prompt, so that oclif does not take "- fix the bug" for a flag.
 * A word that looks like a flag stays one, because it may be a slip ("--usr"); after `--` everything is text anyway.
 * {@link unmarked} undoes it.
 */
export function markPrompts(argv: readonly string[]): string[] {
  const end = argv.indexOf("--");
  const own = end === -1 ? argv : argv.slice(0, end);
  return [...own.map(marked), ...argv.slice(own.length)];
}

/** The text as it was typed. */
export function unmarked(text: string): string {
  return text.startsWith(MARK) ? text.slice(MARK.length) : text;
}

function marked(word: string): string {
  const [, flag = "", value] = /^(--prompt=)(-.+)$/s.exec(word) ?? [];
  if (value !== undefined) return `${flag}${MARK}${value}`;
  // The name of a flag begins with a letter and contains no white space.
  return word.length > 1 && word.startsWith("-") && !/^--?\p{L}[^\s=]*(?:=|$)/u.test(word) ? `${MARK}${word}` : word;
}

/**
 * The prompt that was given: the text, or standard input for "-".
 *
 * @throws FleetError `FLEET_USAGE_INVALID` for a blank one.
 */
export async function readPrompt(given: string): Promise<string> {
  const prompt = given === "-" ? await readStandardInput() : unmarked(given);
  if (prompt.trim() !== "") return prompt;
  const message = "The prompt is empty: text is needed, as an argument or on standard input with -.";
  throw new FleetError("FLEET_USAGE_INVALID", message);
}

async function readStandardInput(): Promise<string> {
  process.stdin.setEncoding("utf8");
  let text = "";
  for await (const piece of process.stdin) text += piece;
  return text;
}
