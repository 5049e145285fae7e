import stringWidth from "string-width";
import { describe, expect, it } from "vitest";
import { type Column, renderTable, shorten } from "../../src/cli/render/table.js";
import { layOut } from "../../src/cli/run/screen.js";

const COLUMNS: Column[] = [
  { heading: "ID", cut: "middle" },
  { heading: "FIRST", yields: 1 },
  { heading: "LAST", yields: 2 },
  "STATE",
];
const ROW = ["a".repeat(30), "second", "third", "ready"];

function headings(width: number): string[] {
  return renderTable(COLUMNS, [ROW], width).split("\n")[0]?.split(/ +/) ?? [];
}

describe("a table", () => {
  it("a table that fits shows all texts in full, and one that does not fit cuts ids before it omits a column", () => {
    expect(renderTable(COLUMNS, [ROW], 55)).toContain("a".repeat(30));
    expect(headings(54)).toEqual(["ID", "FIRST", "LAST", "STATE"]);
    expect(renderTable(COLUMNS, [ROW], 54)).toContain(`${"a".repeat(14)}…${"a".repeat(14)}`);
  });

  it("a table that does not fit omits the least important columns before it cuts ids to under 20 characters", () => {
    expect(headings(44)).toEqual(["ID", "FIRST", "STATE"]);
    expect(headings(36)).toEqual(["ID", "STATE"]);
    expect(renderTable(COLUMNS, [ROW], 18)).toBe("ID           STATE\naaaaa…aaaa   ready");
  });

  it.each([60, 37, 25, 16])("a table with any content has no line wider than a terminal of %i columns", (width) => {
    const rows = ["x", "李".repeat(40), "é".repeat(40), "👩‍👩‍👧".repeat(20), "ä".repeat(128)].map((id) => [
      ...[id, "second", "third", "ready"],
    ]);
    const lines = renderTable(COLUMNS, rows, width).split("\n");
    expect(lines).toHaveLength(rows.length + 1);
    for (const line of lines) expect(stringWidth(line), line).toBeLessThanOrEqual(width);
  });
});

describe("a shortened text", () => {
  it.each([
    ["abcdefghij", 10, "middle", "abcdefghij"],
    ["abcdefghij", 9, "middle", "abcd…ghij"],
    ["abcdefghij", 4, "middle", "ab…j"],
    ["abcdefghij", 4, "end", "abc…"],
    ["李雷韩梅梅", 7, "middle", "李雷…梅"],
    ["李雷韩梅梅", 4, "end", "李…"],
  ] as const)("shorten cuts %j to %i columns (cut: %s) and returns %j", (text, width, cut, short) => {
    expect(shorten(text, width, cut)).toBe(short);
  });
});

describe("a live view", () => {
  const view = {
    above: ["closed"],
    heading: "SERVER",
    lines: Array.from({ length: 20 }, (_, index) => `s${index}`),
    below: ["sum"],
  };
  const screen = { rows: 8, columns: 60 };

  it("a live view fills the screen with lines, and shows the keys and the scroll position in the last row", () => {
    const { lines } = layOut(view, 0, screen);
    expect(lines).toEqual([
      ...["closed", "SERVER", "s0", "s1", "s2", "s3", "sum"],
      "q: quit   ↑ ↓ PgUp PgDn: scroll   4 of 20 lines",
    ]);
  });

  it("a live view that was scrolled still shows its heading", () => {
    expect(layOut(view, 9, screen).lines.slice(1, 4)).toEqual(["SERVER", "s9", "s10"]);
  });

  it("a live view does not scroll past its ends", () => {
    expect(layOut(view, -5, screen).offset).toBe(0);
    const end = layOut(view, 1_000, screen);
    expect(end.offset).toBe(16);
    expect(end.lines.slice(-3)).toEqual(["s19", "sum", "q: quit   ↑ ↓ PgUp PgDn: scroll   20 of 20 lines"]);
  });

  it("a live view shortens text that is too long for a line", () => {
    const long = { above: ["x".repeat(100)], heading: "", lines: [], below: [] };
    expect(layOut(long, 0, { rows: 10, columns: 20 }).lines[0]).toBe(`${"x".repeat(19)}…`);
  });
});
