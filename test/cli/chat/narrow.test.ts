import { stripVTControlCharacters } from "node:util";
import { describe, expect, it } from "vitest";
import { widthOf } from "../../../src/cli/chat/layout.js";
import { ShownCall } from "../../../src/cli/chat/turn-view.js";

const WIDE = "你好 wörld 😀 ";
const WIDTHS = [20, 30, 40, 60, 80];

function widest(rows: readonly string[]): number {
  return Math.max(...rows.map((row) => widthOf(stripVTControlCharacters(row))));
}

describe("the rows of a chat on a narrow terminal", () => {
  it.each(WIDTHS)("a tool call and its outcome fit into one row of %i columns", (columns) => {
    for (const size of [1, 5, 50]) {
      const text = WIDE.repeat(size);
      const call = new ShownCall({ toolCallId: "c", toolName: text, arguments: { path: text } });
      expect(widest([call.row(columns)])).toBeLessThanOrEqual(columns);
      call.end({ toolCallId: "c", success: false, error: { message: text } });
      expect(widest([call.row(columns)])).toBeLessThanOrEqual(columns);
    }
  });
});
