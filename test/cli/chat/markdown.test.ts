import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { MarkdownStream } from "../../../src/cli/chat/markdown.js";
import { widthOf } from "../../../src/cli/render/layout.js";

const SAMPLE = `# Title **x**

Some *text* with \`code\` and a [link](http://x.y/z) that is long enough to wrap over a line. &lt;tag&gt; <b>html</b>
Second line.

- one
- two
  - nested item that is long enough to wrap over the width of the line
    \`\`\`sh
    ls
    \`\`\`
- [x] done

1. first
2. second

> quote
> more **bold**

| Name | Value | Description |
|:-----|------:|:-----------:|
| \`x\` | 12 | some long text that must wrap because it does not fit at sixty |
| 你好 | 3 | y |

\`\`\`ts
const a = 1;\tfoo

\`\`\`
---
The end, ~~not~~ at https://example.com
`;

/** Renders text that arrives in pieces. The lengths of the pieces repeat until the text is complete. */
async function render(text: string, width: number, lengths: readonly number[]): Promise<string[]> {
  const stream = await MarkdownStream.create();
  const rows: string[] = [];
  for (let at = 0, piece = 0; at < text.length; piece++) {
    const length = lengths[piece % lengths.length] ?? 1;
    stream.add(text.slice(at, at + length));
    at += length;
    for (let next = stream.next(width); next !== null; next = stream.next(width)) rows.push(...next);
    stream.open(width);
  }
  return [...rows, ...stream.end(width)];
}

describe("Markdown that arrives in pieces", () => {
  it("Markdown is rendered for terminals of 40, 60, 80 and 140 columns", async () => {
    const screens = await Promise.all(
      [40, 60, 80, 140].map(
        async (width) => `--- ${width} columns ---\n${(await render(SAMPLE, width, [1])).join("\n")}`,
      ),
    );
    await expect(screens.join("\n")).toMatchFileSnapshot("../screens/markdown.txt");
  });

  it("Markdown is rendered in the same way, whatever pieces it arrives in", async () => {
    const expected = await render(SAMPLE, 60, [1]);
    await fc.assert(
      fc.asyncProperty(fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 20 }), async (lengths) => {
        expect(await render(SAMPLE, 60, lengths)).toEqual(expected);
      }),
      { numRuns: 30 },
    );
  });

  it("a block is finished when the next block begins, and is open until then", async () => {
    const stream = await MarkdownStream.create();
    stream.add("First paragraph.\n\nSecond para");
    expect(stream.next(60)).toEqual(["First paragraph."]);
    expect(stream.open(60)).toEqual(["", "Second para"]);
    stream.add("graph.");
    expect(stream.next(60)).toBeNull();
    expect(stream.end(60)).toEqual(["", "Second paragraph."]);
  });

  it("the lines of a code block are finished one by one, and are never wrapped", async () => {
    const stream = await MarkdownStream.create();
    const line = "x".repeat(200);
    stream.add(`\`\`\`js\n${line}\nlast`);
    expect([stream.next(60), stream.next(60), stream.next(60)]).toEqual([["```js"], [line], null]);
    expect(stream.open(60)).toEqual(["last"]);
    stream.add("\n```\nText");
    expect([stream.next(60), stream.next(60)]).toEqual([["last"], ["```"]]);
    expect(stream.end(60)).toEqual(["", "Text"]);
  });

  it("a code block that the model did not end is closed at the end of the text", async () => {
    expect(await render("```\ncode", 60, [3])).toEqual(["```", "code", "```"]);
  });

  it("a list whose items have empty lines between them keeps its numbers", async () => {
    expect(await render("1. one\n\n2. two\n\n3. three\n", 60, [4])).toEqual(["1. one", "", "2. two", "", "3. three"]);
  });

  it("a table without room for its columns becomes one line for each cell", async () => {
    const table = "| a | b | c | d |\n|-|-|-|-|\n| one | two words | three | four |\n";
    expect(await render(table, 20, [7])).toEqual(["a: one", "b: two words", "c: three", "d: four"]);
  });

  it("no row of rendered Markdown is wider than the terminal, except code", async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 30, max: 100 }), async (width) => {
        const rows = await render(SAMPLE.replace(/```ts.*?```/s, ""), width, [9]);
        for (const row of rows) expect(widthOf(row), row).toBeLessThanOrEqual(width);
      }),
      { numRuns: 20 },
    );
  });
});

describe("Markdown of a malicious model", () => {
  const CONTROL = /(?![\n\t])\p{Cc}/u;

  it.each([
    ["a paragraph", "a \x1b[2J b"],
    ["code", "```\n\x1b]52;c;AAAA\x07\n```"],
    ["a code span", "`\x1b[31m`"],
    ["the language of code", "```\x1b[31m\nx\n```"],
    ["the address of a link", "[x](http://a/\x1b[31m)"],
    ["an image", "![\x1b[1m](\x9b1m)"],
    ["a heading", "# \x1b[1m"],
    ["an item of a list", "- \x1b[1m\n- b"],
    ["a cell of a table", "| \x1b[1m |\n|-|\n| \x07 |"],
    ["HTML", "<b \x1b[1m>"],
    ["an entity", "&#27;[31m &#x1b;[31m"],
  ])("a control character in %s does not reach the terminal", async (_, text) => {
    for (const lengths of [[1], [1_000]]) expect((await render(text, 60, lengths)).join("\n")).not.toMatch(CONTROL);
  });

  it("no control character reaches the terminal, wherever it is in the text", async () => {
    const character = fc.constantFrom(
      "\x1b[2J",
      "\x07",
      "\x9b",
      "\r",
      "#",
      "*",
      "_",
      "`",
      "```",
      "[",
      "](",
      ")",
      "|",
      "-",
      "\n",
      " ",
      "a",
      ">",
      "<",
      "1.",
    );
    await fc.assert(
      fc.asyncProperty(fc.array(character, { maxLength: 60 }), async (parts) => {
        expect((await render(parts.join(""), 40, [5])).join("\n")).not.toMatch(CONTROL);
      }),
      { numRuns: 300 },
    );
  });

  it.each([
    ["nested emphasis", "_a*"],
    ["nested quotations", "> "],
    ["nested lists", "- "],
    ["brackets", "["],
    ["items of a list", "- a\n"],
    ["rows of a table", "|a|b|\n|-|-|\n"],
    ["unclosed HTML", "<a "],
    ["words", "lorem ipsum "],
    ["one long word", "x"],
  ])("a long text with many %s is parsed in small pieces, so that it cannot block the chat", async (_, part) => {
    const stream = await MarkdownStream.create();
    const text = part.repeat(Math.ceil(100_000 / part.length));
    stream.add(text);
    let steps = 0;
    const rows: string[] = [];
    for (let next = stream.next(80); next !== null; next = stream.next(80), steps++) rows.push(...next);
    rows.push(...stream.end(80));
    expect(steps).toBeGreaterThanOrEqual(Math.floor(text.length / 4_096) - 1);
    const letters = (value: string) => value.replace(/[^a-wyz]/g, "").length;
    expect(letters(rows.join(""))).toBe(letters(text));
  });
});
