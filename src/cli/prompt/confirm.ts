import { once } from "node:events";
import { createInterface } from "node:readline";
import { Interrupted, onSignals } from "./interrupted.js";

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
  const answer = await readAnswer(`${question} [y/N] `);
  if (/^\s*y(es)?\s*$/i.test(answer)) return;
  process.stdout.write("Nothing was changed.\n");
  throw new Interrupted("SIGINT");
}

/** Reads one line from the terminal. At the end of the input, resolves with an empty text. */
async function readAnswer(prompt: string): Promise<string> {
  const { stdin, stdout } = process;
  const lines = createInterface({ input: stdin, output: stdout, terminal: false });
  const stopped = new AbortController();
  using _ = onSignals(["SIGINT", "SIGTERM"], (name) => stopped.abort(new Interrupted(name)));
  stdout.write(prompt);
  let answer: string | undefined;
  try {
    const line: Promise<string[]> = once(lines, "line", { signal: stopped.signal });
    [answer] = await Promise.race([line, once(lines, "close") as Promise<[]>]);
    return answer ?? "";
  } catch (error) {
    throw stopped.signal.reason ?? error;
  } finally {
    lines.close();
    // Ctrl-C and Ctrl-D leave the cursor on the line of the question.
    if (answer === undefined) stdout.write("\n");
  }
}
