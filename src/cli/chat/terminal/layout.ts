import stringWidth from "string-width";
import { printableLines } from "../../../config/values/text.js";

export type Style = (text: string) => string;

/** A piece of text with one style. */
export interface Span {
  text: string;
  style?: Style;
}

const TAB = 4;

/** Makes a text printable, and puts it on one line. */
export function onOneLine(text: string): string {
  return printableLines(text).replace(/\s+/g, " ").trim();
}

const segmenter = new Intl.Segmenter(undefined, { granularity: "grapheme" });

/** Code points that join their neighbours. In a text without them, each code point is one character. */
const JOINING = /[\p{M}\p{Cf}\p{Emoji_Modifier}\p{Regional_Indicator}\u1100-\u11ff]/u;
/** Splits text into short pieces between characters: the segmenter of Node.js 20 takes quadratic time for long text. */
const PIECES =
  /.{1,100}(?<![\u200d\p{Regional_Indicator}])(?![\p{M}\p{Cf}\p{Emoji_Modifier}\p{Regional_Indicator}\u1100-\u11ff])|.{1,100}/gsu;

/**
 * The characters as a person counts them. A letter with its accents, or an emoji of several code points, is one
 * character.
 */
export function graphemes(text: string): string[] {
  if (!JOINING.test(text)) return [...text];
  const pieces = text.match(PIECES) ?? [];
  return pieces.flatMap((piece) => Array.from(segmenter.segment(piece), ({ segment }) => segment));
}

/** The number of columns that the text takes on a terminal. The text must not contain line breaks or tabs. */
export function widthOf(text: string): number {
  if (isPlain(text)) return text.length;
  return graphemes(text).reduce((total, grapheme) => total + widthOfGrapheme(grapheme), 0);
}

/** A cache of the widths of graphemes, because string-width takes microseconds for each. */
const widths = new Map<string, number>();

function widthOfGrapheme(grapheme: string): number {
  const known = widths.get(grapheme);
  if (known !== undefined) return known;
  const isEmoji = /\p{Extended_Pictographic}|\p{Regional_Indicator}/u.test(grapheme);
  // Remove combining marks, which a terminal draws on their letter. string-width 4 does so only for Latin marks.
  const width = stringWidth(isEmoji ? grapheme : grapheme.replace(/[\p{Mn}\p{Me}\p{Cf}]/gu, ""));
  if (widths.size < 20_000) widths.set(grapheme, width);
  return width;
}

function isPlain(text: string): boolean {
  return /^[\x20-\x7e]*$/.test(text);
}

/** A word or a wide character, in parts with one style each. The parts stay together on a row if they fit. */
type Word = { text: string; width: number; style: Style | undefined }[];

const UNITS = /\n|[ \t]+|[\x21-\x7e]+|\P{ASCII}+/gu;

/**
 * Breaks text into rows of at most `width` columns: between words, beside wide characters, and inside a word that is
 * longer than a row. Keeps line breaks and the spaces at the beginning of a line. `indent` begins each row but the
 * first.
 */
export function wrap(spans: readonly Span[], width: number, indent = ""): string[] {
  const rows = new Rows(width, indent);
  let word: Word = [];
  const endWord = () => {
    if (word.length > 0) rows.add(word);
    word = [];
  };
  for (const { text, style } of spans) {
    for (const [unit] of text.matchAll(UNITS)) {
      if (unit === "\n") {
        endWord();
        rows.break();
      } else if (unit.startsWith(" ") || unit.startsWith("\t")) {
        endWord();
        const spaces = unit.replaceAll("\t", " ".repeat(TAB));
        rows.space({ text: spaces, width: spaces.length, style });
      } else if (isPlain(unit)) word.push({ text: unit, width: unit.length, style });
      else {
        for (const grapheme of graphemes(unit)) {
          const wide = widthOf(grapheme) > 1;
          if (wide) endWord();
          word.push({ text: grapheme, width: widthOf(grapheme), style });
          if (wide) endWord();
        }
      }
    }
  }
  endWord();
  return rows.end();
}

class Rows {
  readonly #rows: string[] = [];
  readonly #width: number;
  readonly #indent: string;
  #row: Word = [];
  #used = 0;
  #gap: Word = [];
  #isContinued = false;

  constructor(width: number, indent: string) {
    this.#width = width;
    this.#indent = indent;
  }

  space(space: Word[number]): void {
    // A row that continues a line does not begin with the spaces between two words.
    if (this.#row.length > 0 || !this.#isContinued) this.#gap.push(space);
  }

  add(word: Word): void {
    const gap = sum(this.#gap);
    const size = sum(word);
    if (this.#used + gap + size <= this.#room) this.#push(word);
    else if (this.#row.length === 0 && this.#used + gap < this.#room) this.#cut(word);
    else {
      this.#next(true);
      if (size <= this.#room) this.#push(word);
      else this.#cut(word);
    }
  }

  break(): void {
    this.#next(false);
  }

  end(): string[] {
    this.#next(false);
    return this.#rows;
  }

  get #room(): number {
    return Math.max(2, this.#width - (this.#rows.length === 0 ? 0 : this.#indent.length));
  }

  #cut(word: Word): void {
    for (const { text, style } of word) {
      for (const grapheme of graphemes(text)) {
        const width = widthOf(grapheme);
        if (this.#used + width > this.#room) this.#next(true);
        this.#push([{ text: grapheme, width, style }]);
      }
    }
  }

  #push(word: Word): void {
    for (const part of [...this.#gap, ...word]) {
      const last = this.#row.at(-1);
      if (last !== undefined && last.style === part.style) last.text += part.text;
      else this.#row.push({ ...part });
      this.#used += part.width;
    }
    this.#gap = [];
  }

  #next(isContinued: boolean): void {
    const text = this.#row.map((part) => part.style?.(part.text) ?? part.text).join("");
    this.#rows.push(this.#rows.length === 0 || text === "" ? text : `${this.#indent}${text}`);
    this.#row = [];
    this.#gap = [];
    this.#used = 0;
    this.#isContinued = isContinued;
  }
}

function sum(word: Word): number {
  return word.reduce((total, { width }) => total + width, 0);
}
