import { describe, expect, it } from "vitest";
import type { Key } from "../../../src/cli/chat/terminal/keyboard.js";
import { PastedText } from "../../../src/cli/chat/terminal/pasted.js";
import { PromptInput } from "../../../src/cli/chat/terminal/prompt-input.js";

const HISTORY = ["first prompt", "second\nprompt", "third prompt"];

class Typist {
  readonly input: PromptInput;

  constructor(history: readonly string[] = []) {
    this.input = new PromptInput(history, ["/help", "/history", "/model"]);
  }

  /** Types text, and presses keys that are named in angle brackets: `abc<left>d`. */
  type(keys: string): this {
    for (const [, name, text] of keys.matchAll(/<([a-z-]+)>|([^<]+)/g)) {
      if (name !== undefined) this.input.key({ text: "", name });
      for (const character of text ?? "") this.input.key({ text: character, name: character } satisfies Key);
    }
    return this;
  }

  /** The text with the cursor as `|`. */
  get shown(): string {
    const { rows, cursor } = this.input.view(40, 10);
    const width = (text: string) => [...text].length;
    return rows
      .map((row, at) =>
        at === cursor.row ? `${row.padEnd(cursor.column).slice(0, cursor.column)}|${row.slice(cursor.column)}` : row,
      )
      .filter((row) => width(row) > 0)
      .join("\n");
  }
}

describe("the editor of a prompt", () => {
  it.each([
    ["abc<left><left>X", "> aX|bc"],
    ["one two three<ctrl-left><ctrl-left>X", "> one X|two three"],
    ["one two<ctrl-w>X", "> one X|"],
    ["one two<ctrl-a><ctrl-k><ctrl-y>X", "> one twoX|"],
    ["abc<home>X<end>Y", "> XabcY|"],
    ["abc<backspace><left><delete>", "> a|"],
    ["one<meta-return>two<up>X", "> oneX|\n  two"],
    ["one<meta-return>two<up><home>X<down><end>Y", "> Xone\n  twoY|"],
    ["one\\<return>two", "> one\n  two|"],
    ["one<enter>two<ctrl-u><ctrl-u>", "> one|"],
    ["/he<tab>x", "> /help x|"],
    ["/h<tab>", "> /h|"],
    ["a<tab>b", "> a    b|"],
  ])("typing %s into the prompt shows %j", (keys, shown) => {
    expect(new Typist().type(keys).shown).toBe(shown);
  });

  it("a character of several code points or columns is one step for arrow keys and for Backspace", () => {
    for (const character of ["é", "e\u0301", "你", "👩‍💻", "🇬🇧", "مَ"]) {
      const typist = new Typist();
      typist.input.paste(`a${character}b`);
      typist.type("<left><left>|<right><backspace>");
      expect(typist.input.text, character).toBe("a|b");
    }
  });

  it("each wide character moves the cursor by two columns", () => {
    const typist = new Typist();
    typist.input.paste("你好");
    expect(typist.input.view(40, 10).cursor).toEqual({ row: 0, column: 6 });
  });

  it("the editor shows only the rows around the cursor, and breaks a long line into rows", () => {
    const typist = new Typist();
    typist.input.paste(Array.from({ length: 30 }, (_, index) => `line ${index}`).join("\n"));
    expect(typist.input.view(40, 3).rows).toEqual(["  line 27", "  line 28", "  line 29"]);
    typist.input.text = "x".repeat(50);
    expect(typist.input.view(20, 10)).toEqual({
      rows: [`> ${"x".repeat(17)}`, `  ${"x".repeat(17)}`, `  ${"x".repeat(16)}`],
      cursor: { row: 2, column: 18 },
    });
  });
});

describe("the history of prompts", () => {
  it("Up and Down move through earlier prompts, line by line, and back to the new prompt", () => {
    const typist = new Typist(HISTORY).type("new");
    const seen = ["up", "up", "up", "up", "up", "down", "down", "down", "down"].map((key) => {
      typist.type(`<${key}>`);
      return typist.input.text;
    });
    expect(seen.slice(0, 5)).toEqual([
      "third prompt",
      "second\nprompt",
      "second\nprompt",
      "first prompt",
      "first prompt",
    ]);
    expect(seen.at(-1)).toBe("new");
  });

  it("Ctrl-R finds the newest prompt that contains the typed text, and a second Ctrl-R the next older one", () => {
    const typist = new Typist(HISTORY).type("new<ctrl-r>prompt");
    expect(typist.input.text).toBe("third prompt");
    typist.type("<ctrl-r>");
    expect(typist.input.text).toBe("second\nprompt");
    typist.type("<return>!");
    expect(typist.input.text).toBe("second\nprompt!");
    expect(typist.input.isSearching).toBe(false);
  });

  it("Ctrl-C and Ctrl-G end a search and bring back the text from before the search", () => {
    for (const key of ["ctrl-c", "ctrl-g"]) {
      const typist = new Typist(HISTORY).type(`new<ctrl-r>first<${key}>`);
      expect(typist.input.text).toBe("new");
    }
  });

  it("a search without a match shows “not found”, and keeps the text", () => {
    const typist = new Typist(HISTORY).type("new<ctrl-r>zzz");
    expect(typist.input.view(40, 10).rows).toEqual(["not found: zzz", "> new"]);
  });

  it("Up shows the last sent prompt first", () => {
    const typist = new Typist(HISTORY).type("sent");
    expect(typist.input.take()).toBe("sent");
    expect(typist.type("<up>").input.text).toBe("sent");
  });
});

describe("pasted text", () => {
  const keys = (text: string) => ({ isPasted: false, text });
  const pasted = (text: string) => ({ isPasted: true, text });

  it.each([
    ["keys", ["abc", "\r"], [keys("abc"), keys("\r")]],
    ["a marked paste", ["a\x1b[200~one\rtwo\x1b[201~\r"], [keys("a"), pasted("one\ntwo"), keys("\r")]],
    ["a marked paste in pieces", ["\x1b[20", "0~on", "e\r", "two\x1b[2", "01~"], [pasted("one\ntwo")]],
    ["a paste with control characters", ["\x1b[200~a\x1b[31m\x03b\x1b[201~"], [pasted("a[31mb")]],
    ["several lines at once", ["one\r\r\ttwo\rthree\r"], [pasted("one\n\n\ttwo\nthree"), keys("\r")]],
    ["several keys at once", ["\x1b[A\x1b[A\r"], [keys("\x1b[A\x1b[A\r")]],
    ["Ctrl-C after lines", ["one\rtwo\x03"], [keys("one\rtwo\x03")]],
  ])("PastedText separates keys from pasted text (%s)", (_, chunks, expected) => {
    const reader = new PastedText();
    expect(chunks.flatMap((chunk) => reader.read(chunk))).toEqual(expected);
  });
});
