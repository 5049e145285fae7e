import type { Lexer, Token, Tokens } from "marked";
import { wrap } from "../terminal/layout.js";
import { blockRows, codeRow, fenceRow } from "./blocks.js";
import { plainSpans } from "./inline.js";

/** The most characters to parse at once, because the parser takes quadratic or cubic time for some texts. */
const MOST_AT_ONCE = 4_096;
/** The most Markdown marks in a block, for the same reason. A block with more marks is shown as plain text. */
const MOST_MARKS = 300;
/** Matches a line that begins with 30 quotation or list marks. Do not parse it: the parser recurses for each mark. */
const TOO_DEEP = /^(?:[ \t]*(?:>|[*+-][ \t]|\d{1,9}[.)][ \t])){30}/m;
const FENCE = /^( {0,3})(`{3,}|~{3,})([^\n`]*)\n/;

interface Fence {
  mark: string;
  indent: number;
}

/**
 * Renders Markdown that arrives in pieces. A block is finished when the next block begins or the text ends. A finished
 * block is rendered once. The last block is open and is rendered again with each piece. The lines of a code block are
 * finished one by one.
 */
export class MarkdownStream {
  readonly #lexer: typeof Lexer;
  #text = "";
  #fence: Fence | null = null;
  /** Whether rows of this text were already returned, so that a blank row must come before the next block. */
  #hasBefore = false;
  /** Whether the next block continues the last one, like more items of a list. If so, no blank row separates them. */
  #continues = false;

  /** Imports the parser only when a chat starts, so that other commands start without it. */
  static async create(): Promise<MarkdownStream> {
    const { Lexer } = await import("marked");
    return new MarkdownStream(Lexer);
  }

  private constructor(lexer: typeof Lexer) {
    this.#lexer = lexer;
  }

  get isEmpty(): boolean {
    return this.#text === "" && this.#fence === null;
  }

  add(text: string): void {
    const joined = this.#text + text;
    this.#text = text.includes("\n") ? joined.replaceAll("\r\n", "\n") : joined;
  }

  /** Returns rows of finished blocks. Takes a bounded time. If `more` is true, call this again for further rows. */
  take(width: number): { rows: string[]; more: boolean } {
    if (this.#fence !== null) return { rows: this.#takeCode(this.#fence), more: this.#text.includes("\n") };
    const start = FENCE.exec(this.#text);
    if (start !== null) return { rows: this.#enterFence(start), more: true };
    const isLong = this.#text.length > MOST_AT_ONCE;
    const part = isLong ? this.#text.slice(0, MOST_AT_ONCE) : this.#text;
    const done = finished(this.#parse(part));
    if (done.length === 0) return isLong ? { rows: this.#takeCut(part, width), more: true } : { rows: [], more: false };
    this.#text = this.#text.slice(done.reduce((length, token) => length + token.raw.length, 0));
    const rows = this.#rowsOf(done, width);
    const last = done.at(-1);
    // The last item of this list is not finished, so the next block continues the list.
    if (last?.type === "list") this.#continues = !last.loose;
    return { rows, more: isLong || FENCE.test(this.#text) };
  }

  /** Returns the rows of the open block so far. Shows only the end of code or of a very long block, as plain text. */
  open(width: number): string[] {
    if (this.#text === "") return [];
    if (this.#fence !== null || this.#text.length > MOST_AT_ONCE) {
      return wrap(plainSpans(this.#text.slice(-MOST_AT_ONCE)), width);
    }
    const rows = blockRows(this.#parse(this.#text), width);
    return this.#hasBefore && !this.#continues && rows.length > 0 ? ["", ...rows] : rows;
  }

  /** Ends the text, and returns its remaining rows. The next `add` begins a new text. */
  end(width: number): string[] {
    const rows: string[] = [];
    for (let more = true; more; ) {
      const taken = this.take(width);
      rows.push(...taken.rows);
      more = taken.more;
    }
    if (this.#fence !== null) {
      if (this.#text !== "") rows.push(codeRow(this.#text));
      rows.push(fenceRow(this.#fence.mark));
    } else rows.push(...this.#rowsOf(this.#parse(this.#text), width));
    this.#text = "";
    this.#fence = null;
    this.#hasBefore = false;
    this.#continues = false;
    return rows;
  }

  #enterFence([line, indent = "", mark = "", language = ""]: RegExpExecArray): string[] {
    this.#text = this.#text.slice(line.length);
    this.#fence = { mark, indent: indent.length };
    return this.#spaced([fenceRow(`${mark}${language.trim()}`)], false);
  }

  #takeCode({ mark, indent }: Fence): string[] {
    const rows: string[] = [];
    const closing = new RegExp(`^ {0,3}${mark[0]}{${mark.length},}\\s*$`);
    for (let end = this.#text.indexOf("\n"); end !== -1; end = this.#text.indexOf("\n")) {
      const line = this.#text.slice(0, end).replace(/\r$/, "");
      this.#text = this.#text.slice(end + 1);
      if (closing.test(line)) {
        this.#fence = null;
        return [...rows, fenceRow(mark)];
      }
      rows.push(codeRow(line.replace(new RegExp(`^ {0,${indent}}`), "")));
    }
    return rows;
  }

  /** Renders the part of a very long block up to the last line break or space in `part`. */
  #takeCut(part: string, width: number): string[] {
    const at = Math.max(part.lastIndexOf("\n"), part.lastIndexOf(" "));
    const cut = part.slice(0, at > 0 ? at + 1 : part.length);
    this.#text = this.#text.slice(cut.length);
    const rows = this.#rowsOf(this.#parse(cut), width);
    this.#continues = true;
    return rows;
  }

  #rowsOf(tokens: readonly Token[], width: number): string[] {
    const rows = this.#spaced(blockRows(tokens, width), this.#continues);
    if (rows.length > 0) this.#continues = false;
    return rows;
  }

  #spaced(rows: string[], continues: boolean): string[] {
    if (rows.length === 0) return rows;
    const isFirst = !this.#hasBefore || continues;
    this.#hasBefore = true;
    return isFirst ? rows : ["", ...rows];
  }

  #parse(text: string): Token[] {
    if (TOO_DEEP.test(text)) return [{ type: "paragraph", raw: text, text, tokens: [plain(text)] }];
    const lexer = new this.#lexer({ gfm: true });
    const tokens: Token[] = lexer.blockTokens(text, lexer.tokens);
    for (const { src, tokens: inline } of lexer.inlineQueue) {
      if ((src.match(/[*_`~[<!&]/g)?.length ?? 0) > MOST_MARKS) inline.push(plain(src));
      else lexer.inlineTokens(src, inline);
    }
    return tokens;
  }
}

/**
 * The tokens that are finished: those before the last block, and the last block if nothing can be added to it. If the
 * last block is a list, all its items but the last are finished.
 */
function finished(tokens: readonly Token[]): Token[] {
  const at = tokens.findLastIndex(({ type }) => type !== "space");
  const last = tokens[at];
  if (last === undefined) return [...tokens];
  const isFollowed = at < tokens.length - 1;
  const before = tokens.slice(0, at);
  if (last.type === "list") return [...before, ...withoutLast(last as Tokens.List)];
  const isEnded = isFollowed ? last.type !== "code" : /^(?:heading|hr)$/.test(last.type) && last.raw.endsWith("\n");
  return isEnded ? [...tokens] : before;
}

function withoutLast(list: Tokens.List): Tokens.List[] {
  const items = list.items.slice(0, -1);
  return items.length === 0 ? [] : [{ ...list, items, raw: items.map(({ raw }) => raw).join("") }];
}

function plain(text: string): Tokens.Text {
  return { type: "text", raw: text, text, escaped: false };
}
