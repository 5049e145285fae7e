const START = "\x1b[200~";
const END = "\x1b[201~";
/** Replaces a line break in text that is edited on one line. */
const BREAK = "⏎";
const BREAKS = /\r\n|\r|\n/g;
// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters in pasted text are removed
const CONTROLS = /[\x00-\x08\x0b-\x1f\x7f]/g;

/**
 * Turns the input of a terminal in raw mode into text for a line editor. A line break in pasted text does not count as
 * the Enter key. Terminals put markers around pasted text if asked to (`\x1b[?2004h`). Some programs that type for the
 * user send several lines at once without markers, and the breaks between these lines do not count either.
 */
export class PastedText {
  #isInside = false;
  /** The beginning of a paste marker that has not fully arrived. */
  #rest = "";

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

/** Restores the line breaks of a prompt that was edited on one line. */
export function promptOf(line: string): string {
  return line.replaceAll(BREAK, "\n");
}

function onOneLine(text: string): string {
  return text.replace(BREAKS, BREAK).replace(CONTROLS, "");
}

/** The number of characters at the end of `text` that may begin a paste marker. */
function heldBack(text: string, mark: string, least: number): number {
  for (let length = Math.min(mark.length - 1, text.length); length >= least; length--) {
    if (text.endsWith(mark.slice(0, length))) return length;
  }
  return 0;
}
