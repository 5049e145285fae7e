import { constants } from "node:os";
import { createInterface } from "node:readline";
import { FleetError } from "../base/errors.js";
import { countOf, printable } from "../base/values/text.js";
import { prompt as checkPrompt } from "../operations/fields.js";
import { usage } from "./flags/flags.js";

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
  return checkPrompt(prompt, given === "-" ? "The prompt on standard input" : "The prompt");
}

async function readStandardInput(): Promise<string> {
  process.stdin.setEncoding("utf8");
  let text = "";
  for await (const piece of process.stdin) text += piece;
  return text;
}

/**
 * Whether a command may ask the user. It may not with `--yes`, or if there may be nobody to answer: with `--json`,
 * without a terminal, or with CI set. Commands ask before they delete what no other command can restore: histories of
 * sessions, and tokens.
 */
export function isAsked({ json, yes = false }: { json: boolean; yes?: boolean | undefined }): boolean {
  const { stdin, stdout, env } = process;
  const isScript = json || stdin.isTTY !== true || stdout.isTTY !== true || !["", "0", "false"].includes(env.CI ?? "");
  return !isScript && !yes;
}

/**
 * Asks a question on the terminal. Resolves if the answer is `y` or `yes`.
 *
 * @throws Interrupted on every other answer, at the end of the input, and on a signal. The exit code of "no" is that of
 * Ctrl-C, because both stop the command before it changes anything.
 */
export async function confirm(question: string): Promise<void> {
  using interview = new Interview();
  const answer = await interview.line(`${question} [y/N] `);
  if (/^\s*y(es)?\s*$/i.test(answer ?? "")) return;
  process.stdout.write("Nothing was changed.\n");
  throw new Interrupted("SIGINT");
}

interface Owned {
  id: string;
  /** Null if it is not known. */
  owner: string | null;
}

/** The question before a deletion. Names exactly the sessions that would be deleted. */
export function askToDelete(sessions: readonly Owned[]): string {
  return `Delete ${named("session", sessions, ["with its history", "with their history"])}?`;
}

/** The question before a revocation. Names exactly the tokens that would be revoked. */
export function askToRevoke(tokens: readonly { id: string; user: string }[]): string {
  const owned = tokens.map(({ id, user }) => ({ id, owner: user }));
  return `Revoke ${named("token", owned, ["and disconnect its clients", "and disconnect their clients"])}?`;
}

/** The question before a purge. Counts everything that the purge would erase. */
export function askToPurge({
  user,
  sessions,
  servers,
  tokens,
}: Record<"sessions" | "servers" | "tokens", number> & { user: string }): string {
  const counts = [countOf(sessions, "session"), countOf(servers, "server"), countOf(tokens, "token")].join(", ");
  return `Erase all data of ${printable(user)} (${counts})? Nothing brings it back.`;
}

/** Names the things and their owners, and then what else is lost: `ofOne` for one thing, `ofMany` for several. */
function named(noun: string, things: readonly Owned[], [ofOne, ofMany]: readonly [string, string]): string {
  const byOwner = new Map<string, string[]>();
  for (const { id, owner } of things) {
    const key = printable(owner ?? "unknown owner");
    byOwner.set(key, [...(byOwner.get(key) ?? []), printable(id)]);
  }
  const groups = [...byOwner];
  const [[owner = "", ids = []] = []] = groups;
  if (things.length === 1) return `the ${noun} ${ids[0]} of ${owner} ${ofOne}`;
  if (groups.length === 1) return `${countOf(things.length, noun)} of ${owner} ${ofMany}: ${ids.join(", ")}`;
  const lists = groups.map(([each, theirs]) => `${each}: ${theirs.join(", ")}`);
  return `${countOf(things.length, noun)} ${ofMany} (${lists.join("; ")})`;
}

/** Whether a person can chat here: standard input and output are a terminal that can move its cursor. */
export function canChat(): boolean {
  return process.stdin.isTTY === true && process.stdout.isTTY === true && process.env.TERM !== "dumb";
}

/** @throws FleetError when a chat is not possible. */
export function assertCanChat(isJson: boolean, sessionId: string | undefined, user: string | undefined): void {
  if (canChat() && !isJson) return;
  throw usage(`A chat ${isJson ? "has no JSON output" : "needs a terminal"}.`, [
    `copilotfleet send ${sessionId ?? "SESSION"} TEXT --user ${user ?? "USER"}${isJson ? " --json" : ""}`,
  ]);
}

interface Choice {
  value: string;
  /** The explanation that is shown after the value. */
  title: string;
}

/** Asks a person questions on the terminal. Answers that the person typed before their question count, too. */
export class Interview implements Disposable {
  readonly #lines = createInterface({ input: process.stdin, output: process.stdout });
  readonly #answers = this.#lines[Symbol.asyncIterator]();
  readonly #interrupted = new AbortController();
  readonly #signals = onSignals(["SIGTERM"], (name) => this.#interrupt(name));

  constructor() {
    // The terminal sends Ctrl-C as a key, and does not show it.
    this.#lines.once("SIGINT", () => {
      process.stdout.write("^C");
      this.#interrupt("SIGINT");
    });
  }

  /** Reads one line. Resolves with null at the end of the input. @throws Interrupted on Ctrl-C and SIGTERM */
  async line(prompt: string): Promise<string | null> {
    this.#lines.setPrompt(prompt);
    this.#lines.prompt();
    const { done, value } = await this.#answers.next();
    // Ctrl-C and Ctrl-D leave the cursor on the line of the question.
    if (done === true) process.stdout.write("\n");
    this.#interrupted.signal.throwIfAborted();
    return done === true ? null : value;
  }

  /**
   * Asks until the answer is allowed. An empty answer means the usual answer.
   *
   * @param initial the usual answer; undefined if the question has no usual answer
   * @param problemOf returns why an answer is not allowed, or null
   */
  async ask(text: string, initial: string | undefined, problemOf: (answer: string) => string | null): Promise<string> {
    for (;;) {
      const line = await this.line(`${text}${initial ? ` [${initial}]` : ""}: `);
      if (line === null) {
        const message = "The input ended before all questions were answered. Nothing was written.";
        throw new FleetError("FLEET_USAGE_INVALID", message);
      }
      const answer = line.trim() || (initial ?? "");
      const problem = problemOf(answer);
      if (problem === null) return answer;
      process.stdout.write(`${problem}\n`);
    }
  }

  /** Lets the person choose by number or by name. The first choice is the usual one. */
  async choose<Value extends string>(text: string, choices: readonly (Choice & { value: Value })[]): Promise<Value> {
    const width = Math.max(...choices.map(({ value }) => value.length));
    const lines = choices.map(({ value, title }, at) => `  ${at + 1}. ${value.padEnd(width)}  ${title}\n`);
    process.stdout.write(`${text}\n${lines.join("")}`);
    const find = (answer: string) => choices.find(({ value }, at) => answer === value || answer === String(at + 1));
    const problemOf = (answer: string) =>
      find(answer) === undefined ? `Answer with a number from 1 to ${choices.length}, or with a name.` : null;
    const answer = await this.ask("Number or name", choices[0]?.value, problemOf);
    return (find(answer) ?? choices[0])?.value as Value;
  }

  note(text: string): void {
    process.stdout.write(`${text}\n`);
  }

  #interrupt(name: NodeJS.Signals): void {
    this.#interrupted.abort(new Interrupted(name));
    this.#lines.close();
  }

  [Symbol.dispose](): void {
    this.#signals[Symbol.dispose]();
    this.#lines.close();
  }
}

/** Thrown when a signal ends a command. The exit code is the one that shells use for this signal. */
export class Interrupted extends Error {
  override readonly name = "Interrupted";
  readonly exitCode: number;
  /** A line for the user about the interrupted work. Null if there is nothing to report. */
  note: string | null = null;

  constructor(signal: NodeJS.Signals) {
    super("interrupted");
    this.exitCode = 128 + constants.signals[signal];
  }
}

let onOutputClosed: (() => void) | undefined;

/** Sets the handler to call when the reader of the output, such as `head`, closes the pipe. */
export function handleClosedOutput(handle: () => void): void {
  onOutputClosed = handle;
}

/** Handles closed output: calls the handler from {@link handleClosedOutput}. If there is none, exits with 0. */
export function outputClosed(): void {
  if (onOutputClosed === undefined) process.exit(0);
  onOutputClosed();
}

/** Calls `handle` for these signals until the returned object is disposed. */
export function onSignals(names: readonly NodeJS.Signals[], handle: (name: NodeJS.Signals) => void): Disposable {
  for (const name of names) process.on(name, handle);
  return {
    [Symbol.dispose]: () => {
      for (const name of names) process.off(name, handle);
    },
  };
}
