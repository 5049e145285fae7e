import { colour } from "../../render/colour.js";
import { EDITING } from "./bindings.js";
import { Editor } from "./editor.js";
import type { Key } from "./keyboard.js";
import { type Span, wrap } from "./layout.js";
import type { LiveRows } from "./screen.js";

/** A question that takes the place of the prompt until it is answered. */
export interface Dialog {
  /** Resolves with the answer. Never rejects. */
  readonly answered: Promise<string | null>;
  key(key: Key): void;
  paste(text: string): void;
  view(columns: number, height: number): LiveRows;
  /** Ends the question without an answer. */
  dismiss(): void;
}

abstract class Answerable {
  readonly answered: Promise<string | null>;
  protected answer!: (value: string | null) => void;

  constructor() {
    this.answered = new Promise((resolve) => {
      this.answer = resolve;
    });
  }

  dismiss(): void {
    this.answer(null);
  }
}

export interface Choice {
  /** The key to press, which is also the answer. */
  key: string;
  label: string;
}

/** A question that one key answers. */
export class ChoiceDialog extends Answerable implements Dialog {
  readonly #lines: readonly Span[];
  readonly #choices: readonly Choice[];

  constructor(lines: readonly Span[], choices: readonly Choice[]) {
    super();
    this.#lines = lines;
    this.#choices = choices;
  }

  key({ text }: Key): void {
    const chosen = this.#choices.find(({ key }) => key === text.toLowerCase());
    if (chosen !== undefined) this.answer(chosen.key);
  }

  paste(): void {
    // A pasted text must not answer the question.
  }

  view(columns: number): LiveRows {
    const question = this.#lines.flatMap((line) => wrap([line], columns));
    const choices = this.#choices.flatMap(({ key, label }) =>
      wrap([{ text: key, style: colour.bold }, { text: `  ${label}` }], columns, "   "),
    );
    const rows = [...question, ...choices];
    return { rows, cursor: { row: rows.length - 1, column: 0 } };
  }
}

/** A question that a line of text answers. */
export class TextDialog extends Answerable implements Dialog {
  readonly #lines: readonly Span[];
  readonly #editor = new Editor();

  constructor(lines: readonly Span[]) {
    super();
    this.#lines = lines;
  }

  key(key: Key): void {
    if (key.name === "return") this.answer(this.#editor.text);
    else if (key.name === "ctrl-d" && this.#editor.text === "") this.dismiss();
    else if (key.text !== "") this.paste(key.text);
    else EDITING[key.name]?.(this.#editor);
  }

  paste(text: string): void {
    this.#editor.insert(text);
  }

  view(columns: number, height: number): LiveRows {
    const question = this.#lines.flatMap((line) => wrap([line], columns));
    const { rows, cursor } = this.#editor.view("? ", { columns, height: Math.max(1, height - question.length) });
    return { rows: [...question, ...rows], cursor: { ...cursor, row: cursor.row + question.length } };
  }
}
