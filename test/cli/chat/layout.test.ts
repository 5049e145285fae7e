import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { graphemes, widthOf, wrap } from "../../../src/cli/chat/terminal/layout.js";
import { printableLines } from "../../../src/config/values/text.js";

const WORDS = fc
  .array(
    fc.oneof(
      fc.constantFrom("a", "word", "你好", "مَرْحَبًا", "👩‍💻", "é", "x".repeat(50)),
      fc.string({ unit: "grapheme" }),
    ),
  )
  .map((words) => words.join(" "));

describe("text in rows", () => {
  it("wrap breaks text between words, beside wide characters, and inside of a word that is longer than a row", () => {
    expect(wrap([{ text: "The quick brown fox jumps" }], 10)).toEqual(["The quick", "brown fox", "jumps"]);
    expect(wrap([{ text: "你好世界这是句子 ok" }], 10)).toEqual(["你好世界这", "是句子 ok"]);
    expect(wrap([{ text: "abcdefghijklmnop" }], 10, "  ")).toEqual(["abcdefghij", "  klmnop"]);
  });

  it("wrap keeps line breaks and leading spaces, but drops the spaces at the breaks that it adds", () => {
    expect(wrap([{ text: "a\n\n  b\tc\n" }], 20)).toEqual(["a", "", "  b    c", ""]);
    expect(wrap([{ text: "12345   67890" }], 7)).toEqual(["12345", "67890"]);
  });

  it("wrap keeps the style of each part of a word", () => {
    const loud = (text: string) => text.toUpperCase();
    expect(wrap([{ text: "one tw" }, { text: "o th", style: loud }, { text: "ree" }], 6)).toEqual([
      "one",
      "twO",
      "THree",
    ]);
  });

  it("wrap returns no row wider than the limit, and loses no text, in any writing system", () => {
    fc.assert(
      fc.property(WORDS, fc.integer({ min: 4, max: 40 }), (raw, width) => {
        const text = printableLines(raw).replaceAll("\t", " ");
        const rows = wrap([{ text }], width);
        for (const row of rows) expect(widthOf(row), JSON.stringify(row)).toBeLessThanOrEqual(width);
        expect(rows.join("").replace(/\s/g, "")).toBe(text.replace(/\s/g, ""));
      }),
    );
  });

  it.each([
    ["abc", 3],
    ["你好", 4],
    ["e\u0301", 1],
    ["مَرْحَبًا", 5],
    ["กำ", 2],
    ["👩‍💻", 2],
    ["🇬🇧", 2],
    ["한글", 4],
  ])("the text %s is %i columns wide", (text, width) => {
    expect(widthOf(text)).toBe(width);
  });

  it("graphemes finds the same characters in a long text as in the parts of that text", () => {
    const text = "👨‍👩‍👧‍👦e\u0301🇬🇧क्षि한".repeat(100);
    expect(graphemes(text)).toEqual(
      Array.from({ length: 100 }, () => ["👨‍👩‍👧‍👦", "e\u0301", "🇬🇧", ...graphemes("क्षि"), "한"]).flat(),
    );
  });
});
