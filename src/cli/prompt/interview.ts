import { createInterface, type Interface } from "node:readline";
import { FleetError } from "../../errors.js";
import { Interrupted } from "./interrupted.js";

export interface Choice {
  value: string;
  /** The explanation that is shown after the value. */
  title: string;
}

/** Asks a person questions on the terminal. */
export class Interview implements Disposable {
  readonly #lines: Interface;
  /** Lines that the person typed before the next question was asked. */
  readonly #early: string[] = [];
  #waiting: { answer: (line: string) => void; fail: (reason: Error) => void } | undefined;
  #end: Error | undefined;

  constructor() {
    this.#lines = createInterface({ input: process.stdin, output: process.stdout });
    this.#lines.on("line", (line) => {
      if (this.#waiting === undefined) this.#early.push(line);
      else this.#waiting.answer(line);
    });
    this.#lines.once("SIGINT", () => {
      process.stdout.write("\n");
      this.#close(new Interrupted("SIGINT"));
    });
    this.#lines.once("close", () => {
      process.stdout.write("\n");
      const message = "The input ended before all questions were answered. Nothing was written.";
      this.#close(new FleetError("FLEET_USAGE_INVALID", message));
    });
  }

  /**
   * Asks until the answer is allowed. An empty answer means the usual answer.
   *
   * @param initial the usual answer; undefined if the question has no usual answer
   * @param problemOf returns why an answer is not allowed, or null
   */
  async ask(text: string, initial: string | undefined, problemOf: (answer: string) => string | null): Promise<string> {
    for (;;) {
      const answer = (await this.#line(`${text}${initial ? ` [${initial}]` : ""}: `)).trim() || (initial ?? "");
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

  [Symbol.dispose](): void {
    this.#lines.removeAllListeners("close");
    this.#lines.close();
  }

  async #line(prompt: string): Promise<string> {
    if (this.#end !== undefined) throw this.#end;
    this.#lines.setPrompt(prompt);
    this.#lines.prompt();
    const early = this.#early.shift();
    if (early !== undefined) return early;
    return await new Promise<string>((answer, fail) => {
      this.#waiting = { answer, fail };
    }).finally(() => {
      this.#waiting = undefined;
    });
  }

  #close(reason: Error): void {
    this.#end ??= reason;
    this.#waiting?.fail(this.#end);
  }
}
