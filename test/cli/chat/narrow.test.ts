import { stripVTControlCharacters } from "node:util";
import { describe, expect, it } from "vitest";
import { ChoiceDialog, TextDialog } from "../../../src/cli/chat/terminal/dialogs.js";
import { widthOf } from "../../../src/cli/chat/terminal/layout.js";
import { PromptInput } from "../../../src/cli/chat/terminal/prompt-input.js";
import { ShownCall } from "../../../src/cli/chat/tools.js";

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

  it.each(WIDTHS)("questions, the search in the history and the prompt fit into %i columns", (columns) => {
    const lines = [{ text: WIDE.repeat(50) }];
    const choices = [{ key: "y", label: WIDE.repeat(20) }];
    const input = new PromptInput([], []);
    input.paste(WIDE.repeat(20));
    const searching = new PromptInput([], []);
    searching.key({ text: "", name: "ctrl-r" });
    for (const text of WIDE.repeat(20)) searching.key({ text, name: "" });
    for (const view of [new ChoiceDialog(lines, choices), new TextDialog(lines), input, searching]) {
      expect(widest(view.view(columns, 12).rows)).toBeLessThanOrEqual(columns);
    }
  });
});
