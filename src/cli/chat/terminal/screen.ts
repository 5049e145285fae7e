import { stripVTControlCharacters } from "node:util";
import { widthOf } from "./layout.js";

/** Terminals that support these two sequences show everything between them at once. Other terminals ignore them. */
const BEGIN = "\x1b[?2026h\x1b[?25l";
const END = "\x1b[?25h\x1b[?2026l";
const CLEAR_BELOW = "\x1b[J";

export interface Cursor {
  row: number;
  column: number;
}

/** The rows that may still change, and the cursor in them. No row is wider than the terminal. */
export interface LiveRows {
  rows: readonly string[];
  cursor: Cursor;
}

const NOTHING: { widths: number[]; cursor: Cursor } = { widths: [], cursor: { row: 0, column: 0 } };

/**
 * Draws a chat at the end of the text on a terminal. Finished rows scroll away and are never drawn again. The live rows
 * below them are drawn again with each change.
 */
export class Screen {
  /** The widths of the live rows, and the position of the cursor in them, as they were last drawn. */
  #drawn = NOTHING;

  /** The width of the terminal. Some terminals report 0 columns or rows. */
  get columns(): number {
    return process.stdout.columns > 0 ? process.stdout.columns : 80;
  }

  get rows(): number {
    return process.stdout.rows > 0 ? process.stdout.rows : 24;
  }

  /** Adds rows above the live rows, and draws the live rows again. */
  draw(above: readonly string[], live: LiveRows): void {
    const { rows, cursor } = fitted(live, this.rows);
    const up = rows.length - 1 - cursor.row;
    process.stdout.write(
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
  }

  /** Makes the next `draw` begin at the cursor, because another program may have used the terminal. */
  restart(): void {
    this.#drawn = NOTHING;
  }

  /** The sequence that moves the cursor to the first live row. On a narrower terminal, a row may take several rows. */
  #toTop(): string {
    const { widths, cursor } = this.#drawn;
    const rowsOf = (width: number) => Math.max(1, Math.ceil(width / this.columns));
    const up = widths.slice(0, cursor.row).reduce((sum, width) => sum + rowsOf(width), 0);
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
