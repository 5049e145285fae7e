const START = "\x1b[200~";
const END = "\x1b[201~";
// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters in pasted text are removed
const CONTROLS = /[\x00-\x08\x0b-\x1f\x7f]/g;

/** A part of what a terminal sends: keys, or a pasted text with line breaks as `\n`. */
export interface Typed {
  isPasted: boolean;
  text: string;
}

/**
 * Separates pasted text from keys in the input of a terminal in raw mode. Terminals put markers around pasted text if
 * asked to (`\x1b[?2004h`). Some programs that type for the user send several lines at once without markers. Such lines
 * count as pasted, too, except for the Enter key at their end.
 */
export class PastedText {
  #isInside = false;
  #pasted = "";
  /** The beginning of a paste marker that has not fully arrived. */
  #rest = "";

  read(chunk: string): Typed[] {
    let left = this.#rest + chunk;
    this.#rest = "";
    const parts: Typed[] = [];
    while (left !== "") {
      const mark = this.#isInside ? END : START;
      const at = left.indexOf(mark);
      const held = at === -1 ? heldBack(left, mark, this.#isInside ? 1 : 2) : 0;
      const text = left.slice(0, at === -1 ? left.length - held : at);
      if (this.#isInside) this.#pasted += text;
      else parts.push(...typed(text));
      if (at === -1) {
        this.#rest = left.slice(left.length - held);
        break;
      }
      if (this.#isInside) parts.push({ isPasted: true, text: cleaned(this.#pasted) });
      this.#pasted = "";
      this.#isInside = !this.#isInside;
      left = left.slice(at + mark.length);
    }
    return parts;
  }
}

function typed(text: string): Typed[] {
  if (text === "") return [];
  const [, body = "", enter = ""] = /^(.*?)((?:\r\n?|\n)*)$/s.exec(text) ?? [];
  // biome-ignore lint/suspicious/noControlCharactersInRegex: keys such as the arrows send control characters
  const isKeys = !/[\r\n]/.test(body) || /[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]/.test(body);
  if (isKeys) return [{ isPasted: false, text }];
  const pasted = { isPasted: true, text: cleaned(body) };
  return enter === "" ? [pasted] : [pasted, { isPasted: false, text: "\r" }];
}

function cleaned(text: string): string {
  return text.replace(/\r\n?/g, "\n").replace(CONTROLS, "");
}

/** The number of characters at the end of `text` that may begin the marker `mark`; 0 if they are fewer than `least`. */
function heldBack(text: string, mark: string, least: number): number {
  for (let length = Math.min(mark.length - 1, text.length); length >= least; length--) {
    if (text.endsWith(mark.slice(0, length))) return length;
  }
  return 0;
}
