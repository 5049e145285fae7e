import stringWidth from "string-width-8";
import wrapAnsi from "wrap-ansi";
import { printableLines } from "../../base/values/text.js";

/** Makes a text printable, and puts it on one line. */
export function onOneLine(text: string): string {
  return printableLines(text).replace(/\s+/g, " ").trim();
}

/** Makes text printable that arrives in pieces. */
export class PrintablePieces {
  /** The end of the last piece if the next piece may complete it: half a line break (`\r`) or half a character. */
  #held = "";

  add(piece: string): string {
    const text = this.#held + piece;
    const end = /[\r\ud800-\udbff]$/.test(text) ? text.length - 1 : text.length;
    this.#held = text.slice(end);
    return printableLines(text.slice(0, end));
  }

  /** Returns what is left after the last piece. */
  end(): string {
    const rest = printableLines(this.#held);
    this.#held = "";
    return rest;
  }
}

/** The number of columns that the text takes on a terminal. The text must not contain line breaks or tabs. */
export function widthOf(text: string): number {
  return stringWidth(text);
}

/**
 * Breaks text into rows of at most `width` columns: between words, and inside a word that is longer than a row. Keeps
 * line breaks and the spaces at the beginning of a line. `indent` begins each row but the first, which begins with
 * `head`.
 */
export function wrap(text: string, width: number, indent = "", head = ""): string[] {
  return text
    .replaceAll("\t", "    ")
    .split("\n")
    .flatMap((line, index) => {
      // Without its spaces at the beginning, because wrap-ansi would remove them. A style may begin before them.
      // biome-ignore lint/suspicious/noControlCharactersInRegex: styles are control sequences
      const [, style = "", lead = ""] = /^((?:\x1b\[[\d;]*m)*)( *)/.exec(line) ?? [];
      const margin = lead.slice(0, Math.floor(width / 2));
      const room = Math.max(2, width - margin.length - indent.length);
      const rows = wrapAnsi(style + line.slice(style.length + lead.length), room, { hard: true }).split("\n");
      return rows.map((row, at) => {
        const start = index + at === 0 ? head : row === "" ? "" : indent;
        return start + (at === 0 && row !== "" ? margin : "") + row;
      });
    });
}
