const START = "\x1b[200~";
const END = "\x1b[201~";
/** Stands for a line break in a text that is edited on one line. */
const BREAK = "⏎";
const BREAKS = /\r\n|\r|\n/g;
// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters of a pasted text are no commands
const CONTROLS = /[\x00-\x08\x0b-\x1f\x7f]/g;

/**
 * Input of a terminal in raw mode. A pasted text becomes text for one line, because a line break in it is not the Enter key. Terminals mark a pasted text when they are asked to (`\x1b[?2004h`). Some programs that type for others do not;
 * their text comes in one piece, with line breaks inside.
 */
export class PastedText {
  #isInside = false;
  /** The beginning of a mark whose end has not arrived. */
  #rest = "";

  /** The text that arrived, ready for the line editor. */
  read(chunk: string): string {
    let left = this.#rest + chunk;
    this.#rest = "";
    let text = "";
    while (left !== "") {
      const mark = this.#isInside ? END : START;
      const at = left.indexOf(mark);
      if (at === -1) {
        const held = heldBack(left, mark, this.#isInside ? 1 : 2);
        this.#rest = left.slice(left.length - held);
        return text + this.#part(left.slice(0, left.length - held));
      }
      text += this.#part(left.slice(0, at));
      this.#isInside = !this.#isInside;
      left = left.slice(at + mark.length);
    }
    return text;
  }

  #part(text: string): string {
    if (this.#isInside) return onOneLine(text);
    const [body = "", enter = ""] = /^(.*?)((?:\r\n?|\n)*)$/s.exec(text)?.slice(1) ?? [];
    return /[\r\n]/.test(body) && !body.includes("\x03") ? `${onOneLine(body)}${enter === "" ? "" : "\r"}` : text;
  }
}

/** The prompt that a line stands for. */
export function promptOf(line: string): string {
  return line.replaceAll(BREAK, "\n");
}

function onOneLine(text: string): string {
  return text.replace(BREAKS, BREAK).replace(CONTROLS, "");
}

/** How many characters at the end may be the beginning of the mark. */
function heldBack(text: string, mark: string, least: number): number {
  for (let length = Math.min(mark.length - 1, text.length); length >= least; length--) {
    if (text.endsWith(mark.slice(0, length))) return length;
  }
  return 0;
}
