import { stripVTControlCharacters } from "node:util";
import type { Tokens } from "marked";
import { colour } from "../../render/colour.js";
import { type Span, type Style, widthOf, wrap } from "../terminal/layout.js";
import { inlineSpans } from "./inline.js";

const GAP = 3;
const NARROWEST = 6;

/** Renders a table with columns that fit into `width`, or one line for each cell if there is no room for columns. */
export function tableRows({ header, rows, align }: Tokens.Table, width: number): string[] {
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
  while (total(limit) > room && limit > NARROWEST) limit--;
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
