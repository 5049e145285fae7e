import type { Token, Tokens } from "marked";
import { printableLines } from "../../../config/values/text.js";
import { colour } from "../../render/colour.js";
import { type Span, widthOf, wrap } from "../terminal/layout.js";
import { inlineSpans, plainSpans } from "./inline.js";
import { tableRows } from "./table.js";

/** The least width of a block, in columns, however deep the block is nested in quotations and lists. */
const NARROWEST = 10;

/** Renders the blocks of parsed Markdown as rows of at most `width` columns, except for code, which is never broken. */
export function blockRows(tokens: readonly Token[], width: number, isTight = false): string[] {
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

export function fenceRow(fence: string): string {
  return colour.dim(printableLines(fence));
}

/** A line of code keeps its tabs and its length, so that it can be copied. */
export function codeRow(line: string): string {
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
