// biome-ignore lint/suspicious/noControlCharactersInRegex: the answer of a terminal
const ANSWER = /\x1b\[\d+;(\d+)R/;
// biome-ignore lint/suspicious/noControlCharactersInRegex: the beginning of an answer that has not fully arrived
const BEGUN = /\x1b\[[\d;]*$/;

/**
 * Removes the terminal's answers about the position of the cursor from the input. Otherwise, they would look like keys.
 * An answer may come late, or in two pieces, and several answers may come at once.
 */
export class Positions {
  /** How many questions to the terminal are still without an answer. */
  #open = 0;
  /** The beginning of an answer that has not fully arrived. */
  #rest = "";

  /** Call this when the chat has asked the terminal for the position of the cursor. */
  expect(): void {
    this.#open++;
  }

  /** @returns the input without the answers; also the column, from 0, if this answers the last question */
  read(chunk: string): { keys: string; column: number | undefined } {
    let keys = this.#rest + chunk;
    this.#rest = "";
    let column: number | undefined;
    while (this.#open > 0) {
      const [answer, given] = ANSWER.exec(keys) ?? [];
      if (answer === undefined) break;
      keys = keys.replace(answer, "");
      this.#open--;
      if (this.#open === 0) column = Number(given) - 1;
    }
    if (this.#open > 0) {
      this.#rest = BEGUN.exec(keys)?.[0] ?? "";
      keys = keys.slice(0, keys.length - this.#rest.length);
    }
    return { keys, column };
  }
}
