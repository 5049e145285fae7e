import { describe, expect, it } from "vitest";
import { printableLines } from "../../src/base/values/text.js";

describe("a text of several lines that somebody else wrote", () => {
  it.each([
    ["an escape sequence", "\x1b[31mred", "\\u{1b}[31mred"],
    ["OSC 52, which would change the clipboard", "\x1b]52;c;ZXZpbA==\x07", "\\u{1b}]52;c;ZXZpbA==\\u{7}"],
    ["a sequence that begins with one 8-bit character", "\x9b2J", "\\u{9b}2J"],
    ["a bidirectional override", "a\u202eb", "a\\u{202e}b"],
    ["half of a surrogate pair", "a\ud800b", "a\\u{d800}b"],
    ["a carriage return, which would overwrite a line", "good\rbad", "good\\u{d}bad"],
  ])("printableLines escapes %s", (_, text, shown) => {
    expect(printableLines(text)).toBe(shown);
  });

  it("printableLines keeps line breaks, tabs, accents, joined emoji and the joiners of Persian", () => {
    const text = "a\n\tb é e\u0301 👩‍💻 می\u200cخواهم 👍🏽";
    expect(printableLines(`${text}\r\n`)).toBe(`${text}\n`);
  });
});
