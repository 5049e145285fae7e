import { printableLines } from "../../../config/values/text.js";
import { graphemes, widthOf } from "./layout.js";
import type { LiveRows } from "./screen.js";

const WORD = /[\p{L}\p{M}\p{N}_]/u;

/** A text of several lines that a person edits, with a cursor between its characters. */
export class Editor {
  #before = "";
  #after = "";
  /** The text that was last deleted by a key such as Ctrl-K. Ctrl-Y inserts it again. */
  #killed = "";

  get text(): string {
    return this.#before + this.#after;
  }

  set text(text: string) {
    this.#before = text;
    this.#after = "";
  }

  get isAtEnd(): boolean {
    return this.#after === "";
  }

  get beforeCursor(): string {
    return this.#before;
  }

  insert(text: string): void {
    this.#before += text;
  }

  backspace(): void {
    this.#before = this.#before.slice(0, this.#before.length - lastOf(this.#before).length);
  }

  delete(): void {
    this.#after = this.#after.slice(firstOf(this.#after).length);
  }

  left(): void {
    this.#to(this.#before.length - lastOf(this.#before).length);
  }

  right(): void {
    this.#to(this.#before.length + firstOf(this.#after).length);
  }

  wordLeft(): void {
    this.#to(this.#wordStart());
  }

  wordRight(): void {
    this.#to(this.#wordEnd());
  }

  lineStart(): void {
    this.#to(this.#before.lastIndexOf("\n") + 1);
  }

  lineEnd(): void {
    this.#to(this.#lineEnd());
  }

  start(): void {
    this.#to(0);
  }

  end(): void {
    this.#to(this.text.length);
  }

  /** Moves one line up in the same column. Returns false on the first line. */
  up(): boolean {
    const start = this.#before.lastIndexOf("\n") + 1;
    if (start === 0) return false;
    const above = this.#before.lastIndexOf("\n", start - 2) + 1;
    this.#toColumn(above, start - 1, widthOf(shown(this.#before.slice(start))));
    return true;
  }

  /** Moves one line down in the same column. Returns false on the last line. */
  down(): boolean {
    const end = this.#lineEnd();
    if (end === this.text.length) return false;
    const start = this.#before.lastIndexOf("\n") + 1;
    const below = this.text.indexOf("\n", end + 1);
    this.#toColumn(end + 1, below === -1 ? this.text.length : below, widthOf(shown(this.#before.slice(start))));
    return true;
  }

  deleteToLineStart(): void {
    const start = this.#before.lastIndexOf("\n") + 1;
    // At the start of a line, delete the line break before it.
    this.#kill(start === this.#before.length ? Math.max(0, start - 1) : start, this.#before.length);
  }

  deleteToLineEnd(): void {
    const at = this.#before.length;
    const end = this.#lineEnd();
    this.#kill(at, end === at ? Math.min(at + 1, this.text.length) : end);
  }

  deleteWordLeft(): void {
    this.#kill(this.#wordStart(), this.#before.length);
  }

  deleteWordRight(): void {
    this.#kill(this.#before.length, this.#wordEnd());
  }

  yank(): void {
    this.insert(this.#killed);
  }

  /** The rows of the text, with `prompt` before the first row. At most `height` rows, around the cursor. */
  view(prompt: string, { columns, height }: { columns: number; height: number }): LiveRows {
    const indent = widthOf(prompt);
    const room = Math.max(2, columns - indent - 1);
    const lines = this.text.split("\n");
    const cursorLine = this.#before.split("\n").length - 1;
    // Lay out only the lines around the cursor, because the text may be long.
    const first = Math.max(0, cursorLine - height);
    const rows: string[] = [];
    let cursor = { row: 0, column: 0 };
    for (const [index, line] of lines.slice(first, cursorLine + height).entries()) {
      const start = index + first === cursorLine ? this.#before.length - (this.#before.lastIndexOf("\n") + 1) : -1;
      const laid = cells(line, start, room);
      if (laid.cursor !== null) cursor = { row: rows.length + laid.cursor.row, column: indent + laid.cursor.column };
      rows.push(...laid.rows);
    }
    const head = (row: string, at: number) => `${at === 0 && first === 0 ? prompt : " ".repeat(indent)}${row}`;
    const top = Math.max(0, Math.min(cursor.row - height + 1, rows.length - height));
    return {
      rows: rows.map(head).slice(top, top + height),
      cursor: { ...cursor, row: cursor.row - top },
    };
  }

  #to(at: number): void {
    const { text } = this;
    this.#before = text.slice(0, at);
    this.#after = text.slice(at);
  }

  #toColumn(start: number, end: number, column: number): void {
    let at = start;
    let width = 0;
    for (const grapheme of graphemes(this.text.slice(start, end))) {
      width += widthOf(shown(grapheme));
      if (width > column) break;
      at += grapheme.length;
    }
    this.#to(at);
  }

  #kill(from: number, to: number): void {
    const { text } = this;
    if (from === to) return;
    this.#killed = text.slice(from, to);
    this.#before = text.slice(0, from);
    this.#after = text.slice(to);
  }

  #lineEnd(): number {
    const end = this.#after.indexOf("\n");
    return end === -1 ? this.text.length : this.#before.length + end;
  }

  #wordStart(): number {
    let at = this.#before.length;
    while (at > 0 && !WORD.test(this.#before[at - 1] ?? "")) at--;
    while (at > 0 && WORD.test(this.#before[at - 1] ?? "")) at--;
    return at;
  }

  #wordEnd(): number {
    const { text } = this;
    let at = this.#before.length;
    while (at < text.length && !WORD.test(text[at] ?? "")) at++;
    while (at < text.length && WORD.test(text[at] ?? "")) at++;
    return at;
  }
}

/** A character as the editor shows it. */
function shown(text: string): string {
  return printableLines(text).replaceAll("\t", "    ");
}

function firstOf(text: string): string {
  return graphemes(text.slice(0, 100))[0] ?? "";
}

function lastOf(text: string): string {
  return graphemes(text.slice(-100)).at(-1) ?? "";
}

/** Breaks a line into rows at any character. `at` is the position of the cursor; -1 if it is in another line. */
function cells(line: string, at: number, room: number): { rows: string[]; cursor: LiveRows["cursor"] | null } {
  const rows: string[] = [];
  let row = "";
  let width = 0;
  let position = 0;
  let cursor: LiveRows["cursor"] | null = null;
  for (const grapheme of [...graphemes(line), ""]) {
    const text = shown(grapheme);
    const size = widthOf(text);
    if (width + size > room) {
      rows.push(row);
      row = "";
      width = 0;
    }
    if (cursor === null && position >= at && at !== -1) cursor = { row: rows.length, column: width };
    row += text;
    width += size;
    position += grapheme.length;
  }
  rows.push(row);
  return { rows, cursor };
}
