import { stripVTControlCharacters } from "node:util";
import type { Lexer, Token, Tokens } from "marked";
import { printableLines } from "../../base/values/text.js";
import { colour } from "../render/colour.js";
import { type Span, type Style, widthOf, wrap } from "./layout.js";

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
    if (TOO_DEEP.test(text)) return [{ type: "paragraph", raw: text, text, tokens: [unstyled(text)] }];
    const lexer = new this.#lexer({ gfm: true });
    const tokens: Token[] = lexer.blockTokens(text, lexer.tokens);
    for (const { src, tokens: inline } of lexer.inlineQueue) {
      if ((src.match(/[*_`~[<!&]/g)?.length ?? 0) > MOST_MARKS) inline.push(unstyled(src));
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

function unstyled(text: string): Tokens.Text {
  return { type: "text", raw: text, text, escaped: false };
}

/** The least width of a block, in columns, however deep the block is nested in quotations and lists. */
const NARROWEST = 10;

/** Renders the blocks of parsed Markdown as rows of at most `width` columns, except for code, which is never broken. */
function blockRows(tokens: readonly Token[], width: number, isTight = false): string[] {
  const rows: string[] = [];
  for (const token of tokens) {
    const next = rowsOf(token as Tokens.Generic, width);
    if (next.length === 0) continue;
    if (rows.length > 0 && !isTight) rows.push("");
    rows.push(...next);
  }
  return rows;
}

function rowsOf(token: Tokens.Generic, width: number): string[] {
  switch (token.type) {
    case "space":
    case "def":
    case "checkbox":
      return [];
    case "heading":
      return wrap(
        [{ text: `${"#".repeat(token.depth)} `, style: colour.dim }, ...inlineSpans(token.tokens, colour.bold)],
        width,
      );
    case "paragraph":
    case "text":
      return wrap(lines(token), width);
    case "code":
      return codeRows(token as Tokens.Code);
    case "hr":
      return [colour.dim("─".repeat(Math.min(width, 40)))];
    case "blockquote":
      return framed(blockRows(token.tokens ?? [], inside(width, 2)), colour.dim("│ "));
    case "list":
      return listRows(token as Tokens.List, width);
    case "table":
      return tableRows(token as Tokens.Table, width);
    default:
      return wrap(plainSpans(token.raw.trimEnd()), width);
  }
}

/** The text of a paragraph. Line breaks stay, unlike in Markdown, because models write them on purpose. */
function lines(token: Tokens.Generic): Span[] {
  return token.tokens === undefined ? plainSpans(token.text) : inlineSpans(token.tokens);
}

function fenceRow(fence: string): string {
  return colour.dim(printableLines(fence));
}

/** A line of code keeps its tabs and its length, so that it can be copied. */
function codeRow(line: string): string {
  return printableLines(line);
}

function codeRows({ raw, text, lang }: Tokens.Code): string[] {
  const [, indent = "", fence] = /^( {0,3})(`{3,}|~{3,})/.exec(raw) ?? [];
  if (fence === undefined) return [fenceRow("```"), ...text.split("\n").map(codeRow), fenceRow("```")];
  // Use `raw`, because the parser (marked 18) adds a line to `text` if the code ends with an empty line.
  const lines = raw.trimEnd().split("\n").slice(1);
  if (lines.at(-1)?.trim() === fence) lines.pop();
  const margin = new RegExp(`^ {0,${indent.length}}`);
  return [
    fenceRow(`${fence}${lang ?? ""}`),
    ...lines.map((line) => codeRow(line.replace(margin, ""))),
    fenceRow(fence),
  ];
}

function listRows({ items, ordered, start, loose }: Tokens.List, width: number): string[] {
  const rows: string[] = [];
  for (const [index, item] of items.entries()) {
    const marker = ordered ? `${Number(start === "" ? 1 : start) + index}. ` : "• ";
    const task = item.task ? (item.checked === true ? "[x] " : "[ ] ") : "";
    const inner = blockRows(item.tokens, inside(width, widthOf(marker) + task.length), !item.loose);
    if (loose && index > 0) rows.push("");
    rows.push(...framed(inner.length === 0 ? [""] : inner, " ".repeat(marker.length), `${colour.dim(marker)}${task}`));
  }
  return rows;
}

function framed(rows: readonly string[], rest: string, first = rest): string[] {
  return rows.map((row, index) => {
    if (index === 0) return `${first}${row}`;
    return row === "" ? rest.trimEnd() : `${rest}${row}`;
  });
}

function inside(width: number, used: number): number {
  return Math.max(NARROWEST, width - used);
}

/** Whether there are no colours. If so, text keeps Markdown marks such as `**`: nothing else shows the emphasis. */
const isPlain = colour.level === 0;

const plain: Style = (text) => text;

/** The HTML entities that models write, with the characters to show for them. */
const ENTITIES: Readonly<Record<string, string>> = {
  "&lt;": "<",
  "&gt;": ">",
  "&amp;": "&",
  "&quot;": '"',
  "&#39;": "'",
  "&nbsp;": " ",
};

/** Turns the inline elements of a block into styled text. */
function inlineSpans(tokens: readonly Token[] | undefined, style: Style = plain): Span[] {
  return (tokens ?? []).flatMap((token) => spansOf(token as Tokens.Generic, style));
}

/** Turns a text into spans without interpreting Markdown in it. */
function plainSpans(text: string, style: Style = plain): Span[] {
  return [{ text: printableLines(text), style }];
}

function spansOf(token: Tokens.Generic, style: Style): Span[] {
  const inner = (look: Style, mark = "") => {
    const both: Style = (text) => look(style(text));
    return [...marked(mark, style), ...inlineSpans(token.tokens, both), ...marked(mark, style)];
  };
  switch (token.type) {
    case "strong":
      return inner(colour.bold, "**");
    case "em":
      return inner(colour.italic, "*");
    case "del":
      return inner(colour.strikethrough, "~~");
    case "codespan":
      return [
        ...marked("`", style),
        ...plainSpans(token.text, (text) => colour.cyan(style(text))),
        ...marked("`", style),
      ];
    case "br":
      return [{ text: "\n" }];
    case "link":
      return [...inner(colour.underline), ...address(token as Tokens.Link, style)];
    case "image":
      return plainSpans(`[${token.text === "" ? "image" : token.text}] (${token.href})`, style);
    case "text":
      if (token.tokens !== undefined) return inlineSpans(token.tokens, style);
      return plainSpans(decoded(token.text), style);
    case "escape":
      return plainSpans(token.text, style);
    default:
      return plainSpans(token.raw, style); // HTML, and elements that a later version of the parser may add
  }
}

/** The address of a link, written out because a clickable link would hide it. Nothing if the link's text shows it. */
function address({ href, text }: Tokens.Link, style: Style): Span[] {
  if (href === text || href === `mailto:${text}` || href === "") return [];
  return plainSpans(` (${href})`, (address) => colour.dim(style(address)));
}

function marked(mark: string, style: Style): Span[] {
  return isPlain && mark !== "" ? [{ text: mark, style }] : [];
}

function decoded(text: string): string {
  return text.replace(/&(?:lt|gt|amp|quot|#39|nbsp);/g, (entity) => ENTITIES[entity] ?? entity);
}

const GAP = 3;
const NARROWEST_COLUMN = 6;

/** Renders a table with columns that fit into `width`, or one line for each cell if there is no room for columns. */
function tableRows({ header, rows, align }: Tokens.Table, width: number): string[] {
  const heads = header.map(({ tokens }) => inlineSpans(tokens, colour.bold));
  const body = rows.map((row) => row.map(({ tokens }) => inlineSpans(tokens)));
  const widths = fitted(naturalWidths([heads, ...body]), width);
  if (widths === null) return listed(heads, body, width);
  const line = (cells: readonly Span[][]) => tableLine(cells, widths, align);
  const rule = colour.dim(widths.map((column) => "─".repeat(column)).join("─┼─"));
  return [...line(heads), rule, ...body.flatMap(line)];
}

function naturalWidths(rows: readonly (readonly Span[][])[]): number[] {
  const widths: number[] = [];
  for (const row of rows) {
    for (const [column, spans] of row.entries()) {
      const cell = Math.max(
        ...spans
          .map(({ text }) => text)
          .join("")
          .split("\n")
          .map(widthOf),
      );
      widths[column] = Math.max(widths[column] ?? 1, cell);
    }
  }
  return widths;
}

/** Shrinks the widest columns until all fit into `width`. Returns null if they would be too narrow to read. */
function fitted(widths: readonly number[], width: number): number[] | null {
  const room = width - GAP * (widths.length - 1);
  const total = (limit: number) => widths.reduce((sum, column) => sum + Math.min(column, limit), 0);
  let limit = Math.max(...widths, 1);
  while (total(limit) > room && limit > NARROWEST_COLUMN) limit--;
  return total(limit) > room ? null : widths.map((column) => Math.min(column, limit));
}

function tableLine(cells: readonly Span[][], widths: readonly number[], align: Tokens.Table["align"]): string[] {
  const wrapped = widths.map((column, index) => wrap(cells[index] ?? [], column));
  const height = Math.max(...wrapped.map((rows) => rows.length));
  return Array.from({ length: height }, (_, row) =>
    widths
      .map((column, index) => padded(wrapped[index]?.[row] ?? "", column, align[index] ?? null))
      .join(colour.dim(" │ "))
      .trimEnd(),
  );
}

function padded(text: string, width: number, align: "center" | "left" | "right" | null): string {
  const gap = Math.max(0, width - widthOf(stripVTControlCharacters(text)));
  const before = align === "right" ? gap : align === "center" ? Math.floor(gap / 2) : 0;
  return `${" ".repeat(before)}${text}${" ".repeat(gap - before)}`;
}

function listed(heads: readonly Span[][], body: readonly (readonly Span[][])[], width: number): string[] {
  const dim: Style = colour.dim;
  return body.flatMap((row, index) => [
    ...(index === 0 ? [] : [dim("─")]),
    ...row.flatMap((cell, column) =>
      wrap([...(heads[column] ?? []), { text: ": ", style: dim }, ...cell], width, "  "),
    ),
  ]);
}
