import { stripVTControlCharacters } from "node:util";
import { widthOf } from "./layout.js";

/** Terminals that support these two sequences show everything between them at once. Other terminals ignore them. */
const BEGIN = "\x1b[?2026h\x1b[?25l";
const END = "\x1b[?25h\x1b[?2026l";
const CLEAR_BELOW = "\x1b[J";
const ASK_POSITION = "\x1b[6n";
const CLEAR_ALL = "\x1b[2J\x1b[3J\x1b[H";

export interface Cursor {
  row: number;
  column: number;
}

/** The rows that may still change, and the cursor in them. No row is wider than the terminal. */
export interface LiveRows {
  rows: readonly string[];
  cursor: Cursor;
}

const NOTHING: { widths: number[]; cursor: Cursor } = { widths: [0], cursor: { row: 0, column: 0 } };

/**
 * Draws a chat at the end of the text on a terminal. Finished rows scroll away and are never drawn again. The live rows
 * below them are drawn again with each change.
 */
export class Screen {
  readonly #out: NodeJS.WriteStream;
  /** The widths of the live rows, and the position of the cursor in them, as they were last drawn. */
  #drawn = NOTHING;
  /** How many rows the terminal moved the cursor down when it became narrower. */
  #moved = 0;

  constructor(out: NodeJS.WriteStream) {
    this.#out = out;
  }

  /** The width of the terminal. Some terminals report 0 columns or rows. */
  get columns(): number {
    return this.#out.columns > 0 ? this.#out.columns : 80;
  }

  get rows(): number {
    return this.#out.rows > 0 ? this.#out.rows : 24;
  }

  /**
   * Asks the terminal for the column of the cursor if the terminal became so narrow that the cursor may have moved:
   * some terminals break the row with the cursor, and others cut it. Returns whether it asked. If so, call
   * {@link locate} with the answer.
   */
  askAfterResize(): boolean {
    if (this.#drawn.cursor.column < this.columns) return false;
    this.#out.write(ASK_POSITION);
    return true;
  }

  /**
   * Finds out how far the resize moved the cursor.
   *
   * @param column the column of the cursor, from 0; undefined if the terminal does not answer
   */
  locate(column: number | undefined): void {
    const { columns } = this;
    const { cursor } = this.#drawn;
    // If the terminal does not report the expected column, assume that the cursor stayed on its row. If that is wrong,
    // an old row stays on the screen. The opposite mistake would delete a row of the conversation.
    this.#moved = column === cursor.column % columns ? Math.floor(cursor.column / columns) : 0;
  }

  /** Adds rows above the live rows, and draws the live rows again. */
  draw(above: readonly string[], live: LiveRows): void {
    const { rows, cursor } = fitted(live, this.rows);
    const up = rows.length - 1 - cursor.row;
    this.#out.write(
      [
        BEGIN,
        this.#toTop(),
        CLEAR_BELOW,
        ...above.map((row) => `${row}\r\n`),
        rows.join("\r\n"),
        up > 0 ? `\x1b[${up}A` : "",
        "\r",
        cursor.column > 0 ? `\x1b[${cursor.column}C` : "",
        END,
      ].join(""),
    );
    this.#drawn = { widths: rows.map((row) => widthOf(stripVTControlCharacters(row))), cursor };
    this.#moved = 0;
  }

  /** Clears the terminal, so that the next `draw` begins at its top. */
  clear(): void {
    this.#out.write(CLEAR_ALL);
    this.restart();
  }

  /** Makes the next `draw` begin at the cursor, because another program may have used the terminal. */
  restart(): void {
    this.#drawn = NOTHING;
  }

  /** The sequence that moves the cursor to the first live row. On a narrower terminal, a row may take several rows. */
  #toTop(): string {
    const { widths, cursor } = this.#drawn;
    const columns = this.columns;
    const above = widths.slice(0, cursor.row).reduce((sum, width) => sum + Math.max(1, Math.ceil(width / columns)), 0);
    const up = above + this.#moved;
    return up > 0 ? `\r\x1b[${up}A` : "\r";
  }
}

/** If not all live rows fit on the terminal, keeps only the last ones, but always the row with the cursor. */
function fitted({ rows, cursor }: LiveRows, height: number): LiveRows {
  const most = Math.max(1, height - 1);
  if (rows.length <= most) return { rows, cursor };
  const first = Math.min(cursor.row, rows.length - most);
  return { rows: rows.slice(first, first + most), cursor: { ...cursor, row: cursor.row - first } };
}
