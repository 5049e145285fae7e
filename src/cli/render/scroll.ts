import { stripVTControlCharacters } from "node:util";
import { shorten } from "./table.js";

/** The content of a live view: fixed lines above and below, and sections between them that scroll under their headings. */
export interface LiveView {
  above: readonly string[];
  /** The first line of each is its heading. */
  sections: readonly (readonly string[])[];
  below: readonly string[];
}

export interface Screen {
  rows: number;
  columns: number;
}

interface Line {
  text: string;
  /** The heading of the line's section; null for a heading. */
  heading: string | null;
}

/**
 * Chooses the lines that fit on the screen.
 *
 * @param offset how many lines the user scrolled down. The returned offset is limited to the existing lines.
 */
export function layOut(view: LiveView, offset: number, { rows, columns }: Screen): { lines: string[]; offset: number } {
  const { above, sections, below } = view;
  const all = sections.flatMap((section, index): Line[] => [
    ...(index === 0 ? [] : [{ text: "", heading: sections[index - 1]?.[0] ?? null }]),
    ...section.map((text, row) => ({ text, heading: row === 0 ? null : (section[0] ?? null) })),
  ]);
  // Leave room for the last line, which shows the keys to press.
  const space = Math.max(2, rows - above.length - below.length - 1);
  const first = Math.max(0, Math.min(offset, all.length - space));
  const shown = all.slice(first, first + space).map(({ text }) => text);
  const heading = all[first]?.heading;
  if (heading != null) shown[0] = heading;
  const scroll = all.length > space ? `   ↑ ↓ PgUp PgDn: scroll   ${first + shown.length} of ${all.length} lines` : "";
  const lines = [...above, ...shown, ...below, `q: quit${scroll}`];
  return { lines: lines.slice(0, rows).map((line) => clip(line, columns)), offset: first };
}

/** Shortens a line that is too long, and removes its colours. The lines of tables already fit. */
function clip(line: string, columns: number): string {
  const text = stripVTControlCharacters(line);
  const short = shorten(text, columns, "end");
  return short === text ? line : short;
}
