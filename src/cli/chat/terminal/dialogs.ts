import { colour } from "../../render/colour.js";
import { shorten } from "../../render/table.js";
import { EDITING } from "./bindings.js";
import { Editor } from "./editor.js";
import type { Key } from "./keyboard.js";
import { type Span, wrap } from "./layout.js";
import type { LiveRows } from "./screen.js";

/** One of the texts that a question consists of. */
export interface Line extends Span {
  /** The most rows of this text that the question shows (default: `MOST_ROWS`). */
  most?: number;
}

/** A question that takes the place of the prompt until it is answered. */
export interface Dialog {
  /** Resolves with the answer; null if the question ends without one. Never rejects. */
  readonly answered: Promise<string | null>;
  /** Handles a key. Returns false if the key belongs to the prompt instead. */
  key(key: Key): boolean;
  /** Like {@link key}, for a pasted text. */
  paste(text: string): boolean;
  /**
   * If `view` cannot show all rows of the question, returns all of them once, so that the caller prints them above it.
   * Otherwise, returns none. Call this before each `view`.
   */
  take(columns: number, height: number): string[];
  view(columns: number, height: number): LiveRows;
  /** Call this when the rows above the question were cleared, so that `take` returns them again. */
  clear(): void;
  /** Ends the question without an answer. */
  dismiss(): void;
}

/** The questions that wait for an answer. The oldest one is on the screen. */
export class DialogQueue {
  readonly #waiting: Dialog[] = [];

  get first(): Dialog | null {
    return this.#waiting[0] ?? null;
  }

  async ask(dialog: Dialog): Promise<string | null> {
    this.#waiting.push(dialog);
    const answer = await dialog.answered;
    this.#waiting.splice(this.#waiting.indexOf(dialog), 1);
    return answer;
  }

  /** Ends all questions without an answer. */
  dismiss(): void {
    for (const dialog of this.#waiting) dialog.dismiss();
  }
}

/** The most rows of a text in a question. A longer text is also printed in full above it, where the user can scroll. */
const MOST_ROWS = 8;
const CUT = "… all of it is above";
/** The most rows of a choice. */
const MOST_CHOICE_ROWS = 2;
/** How long the user must have paused before a key answers a question, in milliseconds. */
const QUIET_MS = 500;
const NOT_QUIET = "Keys go to the prompt until you stop typing.";

/** A question that accepts keys only after a pause, because the user may be typing the next prompt when it appears. */
abstract class Answerable {
  readonly answered: Promise<string | null>;
  protected answer!: (value: string | null) => void;
  readonly #lines: readonly Line[];
  readonly #now: () => number;
  /** The time of the last key that the question did not accept, or the time when the question appeared. */
  #quietSince = Number.POSITIVE_INFINITY;
  #columns = 0;
  /** A cache of the rows of each line, because a line may be a long file and the question is drawn often. */
  #wrapped: string[][] = [];
  #isPrinted = false;

  /** @param now the clock, which tests replace */
  constructor(lines: readonly Line[], now = () => performance.now()) {
    this.#lines = lines;
    this.#now = now;
    this.answered = new Promise((resolve) => {
      this.answer = resolve;
    });
  }

  /** Restarts the pause. Call this when the user has typed something that may belong to the prompt. */
  protected stir(): void {
    this.#quietSince = this.#now();
  }

  protected get isQuiet(): boolean {
    return this.#now() - this.#quietSince >= QUIET_MS;
  }

  /** The rows with the reason why the question accepts no keys; empty if it accepts them. */
  protected hint(columns: number): string[] {
    return this.isQuiet ? [] : wrap([{ text: NOT_QUIET, style: colour.dim }], columns);
  }

  clear(): void {
    this.#isPrinted = false;
  }

  dismiss(): void {
    this.answer(null);
  }

  /** The complete rows of each text below the question, such as a choice. */
  protected below(_columns: number): string[][] {
    return [];
  }

  /** How many rows are left for the texts of the question. May be negative. */
  protected abstract room(columns: number, height: number): number;

  take(columns: number, height: number): string[] {
    this.#quietSince = Math.min(this.#quietSince, this.#now());
    if (this.#isPrinted || !this.#isCut(columns, height)) return [];
    this.#isPrinted = true;
    return ["", ...this.#rows(columns).flat(), ...this.below(columns).flat()];
  }

  /** The rows of the question; only the first ones if not all fit, because the model may have written a long text. */
  protected question(columns: number, height: number): string[] {
    const rows = this.#shown(columns);
    if (!this.#isCut(columns, height)) return rows;
    const room = Math.max(1, this.room(columns, height) - 1);
    return [...rows.slice(0, room), colour.dim(shorten(CUT, columns, "end"))];
  }

  #isCut(columns: number, height: number): boolean {
    return (
      this.#shown(columns).length > this.room(columns, height) ||
      this.#rows(columns).flat().length > this.#shown(columns).length ||
      this.below(columns).some((rows) => rows.length > MOST_CHOICE_ROWS)
    );
  }

  #shown(columns: number): string[] {
    return this.#rows(columns).flatMap((rows, index) => rows.slice(0, this.#lines[index]?.most ?? MOST_ROWS));
  }

  #rows(columns: number): string[][] {
    if (columns !== this.#columns) this.#wrapped = this.#lines.map((line) => wrap([line], columns));
    this.#columns = columns;
    return this.#wrapped;
  }
}

export interface Choice {
  /** The key to press, which is also the answer. */
  key: string;
  label: string;
}

/** A question that one key answers. */
export class ChoiceDialog extends Answerable implements Dialog {
  readonly #choices: readonly Choice[];

  /** @param now the clock, which tests replace */
  constructor(lines: readonly Line[], choices: readonly Choice[], now?: () => number) {
    super(lines, now);
    this.#choices = choices;
  }

  key({ text }: Key): boolean {
    const chosen = this.isQuiet ? this.#choices.find(({ key }) => key === text.toLowerCase()) : undefined;
    this.stir();
    if (chosen === undefined) return false;
    this.answer(chosen.key);
    return true;
  }

  paste(): boolean {
    this.stir();
    return false;
  }

  view(columns: number, height: number): LiveRows {
    const choices = this.below(columns).flatMap((rows) => rows.slice(0, MOST_CHOICE_ROWS));
    const rows = [...this.question(columns, height), ...choices, ...this.hint(columns)];
    return { rows, cursor: { row: rows.length - 1, column: 0 } };
  }

  protected override below(columns: number): string[][] {
    return this.#choices.map(({ key, label }) =>
      wrap([{ text: key, style: colour.bold }, { text: `  ${label}` }], columns, "   "),
    );
  }

  protected override room(columns: number, height: number): number {
    const choices = this.below(columns).reduce((sum, { length }) => sum + Math.min(length, MOST_CHOICE_ROWS), 0);
    return height - choices - wrap([{ text: NOT_QUIET }], columns).length;
  }
}

/** A question that the user answers with a text. Only the first key of the answer needs a pause before it. */
export class TextDialog extends Answerable implements Dialog {
  readonly #editor = new Editor();
  #isAnswering = false;

  key(key: Key): boolean {
    if (!this.#takes()) return false;
    if (key.name === "return") this.answer(this.#editor.text);
    else if (key.name === "ctrl-d" && this.#editor.text === "") this.dismiss();
    else if (key.text !== "") this.#editor.insert(key.text);
    else EDITING[key.name]?.(this.#editor);
    return true;
  }

  paste(text: string): boolean {
    if (!this.#takes()) return false;
    this.#editor.insert(text);
    return true;
  }

  view(columns: number, height: number): LiveRows {
    const question = this.question(columns, height);
    const hint = this.#isAnswering ? [] : this.hint(columns);
    if (hint.length > 0) {
      const rows = [...question, ...hint];
      return { rows, cursor: { row: rows.length - 1, column: 0 } };
    }
    const { rows, cursor } = this.#editor.view("? ", { columns, height: Math.max(1, height - question.length) });
    return { rows: [...question, ...rows], cursor: { ...cursor, row: cursor.row + question.length } };
  }

  protected override room(columns: number, height: number): number {
    return height - wrap([{ text: NOT_QUIET }], columns).length;
  }

  #takes(): boolean {
    this.#isAnswering ||= this.isQuiet;
    if (!this.#isAnswering) this.stir();
    return this.#isAnswering;
  }
}
