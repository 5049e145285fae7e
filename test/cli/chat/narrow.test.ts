import { stripVTControlCharacters } from "node:util";
import { describe, expect, it } from "vitest";
import { callRow } from "../../../src/cli/chat/turn-view.js";
import { widthOf } from "../../../src/cli/render/layout.js";

const WIDE = "你好 wörld 😀 ";
const WIDTHS = [20, 30, 40, 60, 80];

function widest(rows: readonly string[]): number {
  return Math.max(...rows.map((row) => widthOf(stripVTControlCharacters(row))));
}

describe("the rows of a chat on a narrow terminal", () => {
  it.each(WIDTHS)("a tool call and its outcome fit into one row of %i columns", (columns) => {
    for (const size of [1, 5, 50]) {
      const row = callRow(`tool: ${WIDE.repeat(size)} (exit code 3)`, columns);
      expect(widest([row])).toBeLessThanOrEqual(columns);
      expect(row).toContain("3)");
    }
  });
});
