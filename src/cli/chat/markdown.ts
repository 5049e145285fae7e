import type { Lexer, Token, Tokens } from "marked";
import { printableLines } from "../../base/values/text.js";
import { colour } from "../render/colour.js";
import { PrintablePieces, widthOf, wrap } from "../render/layout.js";
import { renderTable } from "../render/table.js";

/** The most characters to parse at once, because the parser takes quadratic time for some texts. */
const MOST_AT_ONCE = 4_096;
/** A part with more marks than this is shown as it is, for the same reason. */
const MOST_MARKS = 600;
/** A block ends before an empty line that an unindented line follows, and before a code block. */
const BLOCK_END = /\n(?=(?:[ \t]*\n)+\S)|\n(?= {0,3}(?:`{3,}|~{3,})[^\n`]*\n)/;
const FENCE = /^( {0,3})(`{3,}|~{3,})([^\n`]*)\n/;

/**
 * Renders Markdown that arrives in pieces, as rows. Escapes control characters first, so that the text of a model
 * cannot act on the terminal. A block is finished when the next one begins. A line of a code block is finished at its
 * end.
 */
export class MarkdownStream {
  readonly #lexer: typeof Lexer;
  #text = "";
  readonly #pieces = new PrintablePieces();
  /** The code block that has begun and not ended. */
  #fence: { mark: string; indent: number } | null = null;
  /** Whether an empty row must come before the next block. */
  #isSpaced = false;

  /** Imports the parser only when a chat starts, so that other commands start without it. */
  static async create(): Promise<MarkdownStream> {
    const { Lexer } = await import("marked");
    return new MarkdownStream(Lexer);
  }

  private constructor(lexer: typeof Lexer) {
    this.#lexer = lexer;
  }

  add(piece: string): void {
    this.#text += this.#pieces.add(piece);
  }

  /** The rows of the next finished part, in a bounded time; null if nothing else is finished. */
  next(width: number): string[] | null {
    if (this.#fence !== null) return this.#nextOfCode(this.#fence);
    this.#text = this.#text.replace(/^(?:[ \t]*\n)+/, "");
    const [line, indent = "", mark = "", language = ""] = FENCE.exec(this.#text) ?? [];
    if (line !== undefined) {
      this.#take(line.length);
      this.#fence = { mark, indent: indent.length };
      return this.#spaced([colour.dim(mark + language.trim())]);
    }
    const part = this.#text.slice(0, MOST_AT_ONCE);
    const end = BLOCK_END.exec(part);
    if (end !== null) return this.#spaced(this.#render(this.#take(end.index + 1), width));
    if (part === this.#text) return null;
    const cut = Math.max(part.lastIndexOf("\n"), part.lastIndexOf(" ")) + 1;
    const rows = this.#spaced(this.#render(this.#take(cut === 0 ? part.length : cut), width));
    this.#isSpaced = false; // the rest of the block follows
    return rows;
  }

  /** The rows of the part that is not finished. Code and very long blocks show only their end. */
  open(width: number): string[] {
    if (this.#text.trim() === "") return [];
    if (this.#fence !== null) return wrap(this.#text.slice(-MOST_AT_ONCE), width);
    const rows = this.#render(this.#text.slice(-MOST_AT_ONCE), width);
    return this.#isSpaced ? ["", ...rows] : rows;
  }

  /** Ends the text, and returns its remaining rows. The next `add` begins a new text. */
  end(width: number): string[] {
    this.#text += this.#pieces.end();
    const rows: string[] = [];
    for (let next = this.next(width); next !== null; next = this.next(width)) rows.push(...next);
    const rest = this.#take(this.#text.length);
    if (this.#fence !== null) rows.push(...(rest === "" ? [] : [rest]), colour.dim(this.#fence.mark));
    else if (rest.trim() !== "") rows.push(...this.#spaced(this.#render(rest, width)));
    this.#fence = null;
    this.#isSpaced = false;
    return rows;
  }

  /** A line of code keeps its tabs and its length, so that it can be copied. */
  #nextOfCode({ mark, indent }: { mark: string; indent: number }): string[] | null {
    const end = this.#text.indexOf("\n");
    if (end === -1) return null;
    const line = this.#take(end + 1).slice(0, -1);
    const [, closing = ""] = /^ {0,3}(`{3,}|~{3,})\s*$/.exec(line) ?? [];
    if (!closing.startsWith(mark)) return [line.replace(new RegExp(`^ {0,${indent}}`), "")];
    this.#fence = null;
    return [colour.dim(mark)];
  }

  #take(length: number): string {
    const taken = this.#text.slice(0, length);
    this.#text = this.#text.slice(length);
    return taken;
  }

  #spaced(rows: string[]): string[] {
    const spaced = this.#isSpaced ? ["", ...rows] : rows;
    this.#isSpaced = true;
    return spaced;
  }

  #render(text: string, width: number): string[] {
    if ((text.match(/[*_`~[<!&>|]/g)?.length ?? 0) > MOST_MARKS) return wrap(text.trimEnd(), width);
    try {
      return blocks(new this.#lexer({ gfm: true }).lex(text), width);
    } catch (error) {
      // The parser calls itself for each level of lists and quotations, and a hostile text has thousands of levels.
      if (error instanceof RangeError) return wrap(text.trimEnd(), width);
      throw error;
    }
  }
}

/** The least width of a block, in columns, however deep the block is nested in quotations and lists. */
const NARROWEST = 10;

/** Renders blocks as rows of at most `width` columns, except for code, which is never broken. */
function blocks(tokens: readonly Token[], width: number, isTight = false): string[] {
  const all = tokens.map((token) => block(token as Tokens.Generic, Math.max(NARROWEST, width)));
  const shown = all.filter((rows) => rows.length > 0);
  return shown.flatMap((rows, index) => (index === 0 || isTight ? rows : ["", ...rows]));
}

function block(token: Tokens.Generic, width: number): string[] {
  switch (token.type) {
    case "space":
    case "def":
    case "checkbox":
      return [];
    case "heading":
      return wrap(`${colour.dim("#".repeat(token.depth))} ${colour.bold(inline(token.tokens ?? []))}`, width);
    case "paragraph":
    case "text":
      return wrap(inline(token.tokens ?? [token]), width); // line breaks stay, because models write them on purpose
    case "code":
      return [colour.dim(`\`\`\`${token.lang ?? ""}`), ...token.text.split("\n"), colour.dim("```")];
    case "hr":
      return [colour.dim("─".repeat(Math.min(width, 40)))];
    case "blockquote":
      return blocks(token.tokens ?? [], width - 2).map((row) => colour.dim("│ ") + row);
    case "list":
      return list(token as Tokens.List, width);
    case "table":
      return table(token as Tokens.Table, width);
    default:
      return wrap(token.raw.trimEnd(), width);
  }
}

function list({ items, ordered, start, loose }: Tokens.List, width: number): string[] {
  return items.flatMap((item, index) => {
    const marker = ordered ? `${Number(start === "" ? 1 : start) + index}. ` : "• ";
    const task = item.task ? (item.checked === true ? "[x] " : "[ ] ") : "";
    const inner = blocks(item.tokens, width - marker.length - task.length, !item.loose);
    const rows = (inner.length === 0 ? [""] : inner).map((row, at) => {
      if (at === 0) return colour.dim(marker) + task + row;
      return row === "" ? "" : " ".repeat(marker.length) + row;
    });
    return loose && index > 0 ? ["", ...rows] : rows;
  });
}

/** Renders one line for each cell if there is no room for the columns. */
function table({ header, rows }: Tokens.Table, width: number): string[] {
  const heads = header.map(({ tokens }) => inline(tokens));
  const cells = rows.map((row) => row.map(({ tokens }) => inline(tokens) || " "));
  const lines = renderTable(heads, cells, Number.POSITIVE_INFINITY).split("\n");
  if (lines.every((line) => widthOf(line) <= width)) return lines;
  return cells.flatMap((row, index) => [
    ...(index === 0 ? [] : [""]),
    ...row.flatMap((cell, column) => wrap(`${colour.bold(heads[column])}: ${cell}`, width, "  ")),
  ]);
}

/** The entities that models write and that the parser leaves as they are. */
const ENTITIES: Readonly<Record<string, string>> = { lt: "<", gt: ">", amp: "&", quot: '"', nbsp: " " };

function inline(tokens: readonly Token[]): string {
  return tokens.map((token) => span(token as Tokens.Generic)).join("");
}

function span(token: Tokens.Generic): string {
  switch (token.type) {
    case "strong":
      return marked("**", colour.bold, inline(token.tokens ?? []));
    case "em":
      return marked("*", colour.italic, inline(token.tokens ?? []));
    case "del":
      return marked("~~", colour.strikethrough, inline(token.tokens ?? []));
    case "codespan":
      return marked("`", colour.cyan, printableLines(token.text));
    case "br":
      return "\n";
    case "link":
      return link(token as Tokens.Link);
    case "image":
      return printableLines(`[${token.text === "" ? "image" : token.text}] (${token.href})`);
    case "escape":
    case "text":
      if (token.tokens !== undefined) return inline(token.tokens);
      // The parser has turned entities such as `&#27;` into characters, so escape control characters again.
      return printableLines(token.text).replace(/&(lt|gt|amp|quot|nbsp);/g, (_, name: string) => ENTITIES[name] ?? "");
    default:
      return token.raw; // HTML, and elements that a later version of the parser may add
  }
}

/** Writes the address out, because a clickable link would hide it. */
function link({ href, text, tokens }: Tokens.Link): string {
  const isShown = href === text || href === `mailto:${text}` || href === "";
  return colour.underline(inline(tokens)) + (isShown ? "" : colour.dim(printableLines(` (${href})`)));
}

/** Without colours, the marks of Markdown stay, because nothing else shows the emphasis. */
function marked(mark: string, style: (text: string) => string, text: string): string {
  return colour.level === 0 ? mark + text + mark : style(text);
}
