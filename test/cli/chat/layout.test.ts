import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { printableLines } from "../../../src/base/values/text.js";
import { widthOf, wrap } from "../../../src/cli/render/layout.js";

const WORDS = fc
  .array(
    fc.oneof(
      fc.constantFrom("a", "word", "你好", "مَرْحَبًا", "👩‍💻", "é", "x".repeat(50)),
      fc.string({ unit: "grapheme" }),
    ),
  )
  .map((words) => words.join(" "));

describe("text in rows", () => {
  it("wrap breaks text between words, and inside of a word that is longer than a row", () => {
    expect(wrap("The quick brown fox jumps", 10)).toEqual(["The quick", "brown fox", "jumps"]);
    expect(wrap("你好世界这是句子", 10)).toEqual(["你好世界这", "是句子"]);
    expect(wrap("abcdefghijklmnop", 10, "  ")).toEqual(["abcdefgh", "  ijklmnop"]);
  });

  it("wrap keeps line breaks and leading spaces, but drops the spaces at the breaks that it adds", () => {
    expect(wrap("a\n\n  b\tc\n", 20)).toEqual(["a", "", "  b    c", ""]);
    expect(wrap("12345   67890", 7)).toEqual(["12345", "67890"]);
  });

  it("wrap returns no row wider than the limit, and loses no text, in any writing system", () => {
    fc.assert(
      fc.property(WORDS, fc.integer({ min: 4, max: 40 }), (raw, width) => {
        const text = printableLines(raw).replaceAll("\t", " ");
        const rows = wrap(text, width);
        for (const row of rows) expect(widthOf(row), JSON.stringify(row)).toBeLessThanOrEqual(width);
        expect(rows.join("").replace(/\s/g, "")).toBe(text.normalize().replace(/\s/g, ""));
      }),
    );
  });
});
