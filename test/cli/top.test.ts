import { describe, expect, it } from "vitest";
import { firstOf, TopModel, type ViewTable } from "../../src/cli/top.js";

const ROWS = 4;

/** A table of servers with one row for each id. */
function tableWith(...ids: string[]): ViewTable {
  return { heading: "SERVER", ids, lines: ids, total: ids.length };
}

const TEN = tableWith(..."abcdefghij");

/** A model in which these keys were pressed. Each key is a name, such as `down`. */
function pressed(table: ViewTable, ...names: string[]): TopModel {
  const model = new TopModel();
  for (const name of names) model.press({ name, text: "", raw: {} }, table, ROWS);
  return model;
}

describe("the selected row in top", () => {
  it.each([
    ["is the first one before any key", [], "a", 0],
    ["moves down by one without scrolling while it fits", ["down", "j"], "c", 0],
    ["is the last line of the screen after it moved past the bottom", ["down", "down", "down", "down"], "e", 1],
    ["moves by a page", ["pagedown"], "e", 1],
    ["stops at the last row", ["end", "down"], "j", 6],
    ["stops at the first row", ["end", "home", "up"], "a", 0],
  ])("the selected row %s", (_, keys, selected, first) => {
    const model = pressed(TEN, ...keys);
    expect(TEN.ids[model.selectedIn(TEN)]).toBe(selected);
    expect(model.scroll(TEN, ROWS)).toBe(first);
  });

  it("the selected row stays selected when the order of the rows changes, and the screen scrolls to it", () => {
    const model = pressed(TEN, "down");
    const reversed = tableWith(..."jihgfedcba");
    expect(reversed.ids[model.selectedIn(reversed)]).toBe("b");
    expect(model.scroll(reversed, ROWS)).toBe(5);
  });

  it("when the selected row is gone, the first row is selected, and the screen scrolls to the top", () => {
    const model = pressed(TEN, "end");
    expect(model.scroll(TEN, ROWS)).toBe(6);
    const fewer = tableWith("a", "b");
    expect(model.selectedIn(fewer)).toBe(0);
    expect(model.scroll(fewer, ROWS)).toBe(0);
  });

  it("a table without rows has nothing to scroll to, and its keys do nothing", () => {
    const empty = tableWith();
    const model = pressed(empty, "down", "end");
    expect(model.scroll(empty, ROWS)).toBe(0);
    expect(model.press({ text: "D", name: "d", raw: {} }, empty, ROWS)).toBeNull();
    expect(model.input).toBeNull();
  });
});

describe("a page in top", () => {
  const page = (first: number) => ({ title: "Log", lines: [..."abcdefghij"], first });

  it.each([
    ["first shows its last lines", Number.MAX_SAFE_INTEGER, 0, 6],
    ["scrolls up from its end", Number.MAX_SAFE_INTEGER, -2, 4],
    ["stops at its first line", 1, -4, 0],
    ["stops when its last line is at the bottom", 5, 4, 6],
  ])("a page %s", (_, first, steps, expected) => {
    expect(firstOf(page(first), ROWS, steps)).toBe(expected);
  });

  it("a page that fits on the screen begins with its first line", () => {
    expect(firstOf(page(Number.MAX_SAFE_INTEGER), 20)).toBe(0);
  });
});
