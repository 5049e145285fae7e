import fc from "fast-check";
import MarkdownIt from "markdown-it";
import { describe, expect, it } from "vitest";
import { codeSpan, foreignMarkdown, MarkdownTranscript, plainMarkdown } from "../../src/cli/render/transcript.js";
import type { TranscriptEntry } from "../../src/runtime/history/transcript.js";

const markdown = new MarkdownIt({ html: true });

const entry = (over: Partial<TranscriptEntry>): TranscriptEntry => ({
  at: "2026-01-02T03:04:05.678Z",
  role: "user",
  text: "",
  turn: 1,
  user: "alice",
  attachments: [],
  tool: null,
  failure: null,
  outcome: null,
  ...over,
});

/** A transcript of two turns. The prompt, the tool call and the reply of the first turn consist of this text. */
function documentOf(text: string): string {
  const render = new MarkdownTranscript();
  const entries = [
    entry({ text, attachments: [text] }),
    entry({ role: "tool", text, tool: { name: text, outcome: "failed" } }),
    entry({ role: "assistant", text, failure: text }),
    entry({ turn: 2, text: "the next prompt" }),
    entry({ turn: 2, role: "assistant", text: "the next reply" }),
  ];
  return entries.map((each) => render.entry(each)).join("");
}

/** The top-level blocks of a document, and its HTML outside of code. */
function outline(text: string): { blocks: string[]; html: string[] } {
  const tokens = markdown.parse(text, {});
  const flat = tokens.flatMap((token) => [token, ...(token.children ?? [])]);
  const at = (token: (typeof tokens)[number]) => tokens[tokens.indexOf(token) + 1]?.content ?? "";
  return {
    blocks: tokens.flatMap((token) => {
      if (token.level === 0 && token.type === "heading_open") return [`${token.tag} ${at(token)}`];
      if (token.level === 1 && token.type === "list_item_open") return ["item"];
      return token.level === 0 && token.nesting !== -1 && token.type !== "bullet_list_open" ? [token.type] : [];
    }),
    html: flat.filter(({ type }) => type.startsWith("html_")).map(({ content }) => content),
  };
}

const OUTLINE = ["h2 Turn 1", "item", "item", "item", "h2 Turn 2", "item", "item"];

describe("a transcript in Markdown", () => {
  it.each([
    ["headings", "# One\n\nTwo\n===\n\n## Three"],
    ["a code block without an end", "look:\n```js\n# x\n"],
    ["a code block that begins in a list", "1. a\n   ```\n   <!--\nb\n```"],
    ["a comment without an end", "a\n<!-- b\nc"],
    ["a comment after a code block in a list", "- ```\nx\n<!-- y"],
    ["tags without an end", "<details><summary>x\n\n</li></ul></div>\n<pre>"],
    ["tags after a backtick of an earlier line", "a ` b\n` <div> `c"],
    ["tags after an escaped backtick", "\\` <div> `"],
    ["tags in code that a table cuts", "| ` | <b> ` |\n| - | - |\n| ` | <b> ` |"],
    ["a tag after a backslash", "\\<b> \\\\<b>"],
    ["lists, quotes and rules", "- a\n  - b\n\n> c\n\n---\n\n***"],
    ["a fence that is indented", "  ```\ncode\n  ```\n  <!-- x"],
    ["only blank lines", "\n\n  \n"],
  ])("a Markdown transcript keeps its outline when prompt and reply contain %s", (_, text) => {
    const { blocks, html } = outline(documentOf(text));
    expect(blocks).toEqual(OUTLINE);
    expect(html).toEqual([]);
  });

  it("a Markdown transcript keeps its outline, and has no comment, whatever the prompt and the reply are", () => {
    const piece = fc.constantFrom(
      ...'`,``,```,````,~~~,\n,\n\n,\n  ,\n    ,\n   - ,- ,1. ,> ,# ,<!--,-->,<div>,</ul>,<b x=",<?php,<![CDATA[,\\,|,---,x,word, ,\t'.split(
        ",",
      ),
    );
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 40 }), (pieces) => {
        const { blocks, html } = outline(documentOf(pieces.join("")));
        expect(blocks).toEqual(OUTLINE);
        expect(html.filter((each) => /^<[!?]/.test(each))).toEqual([]);
      }),
      { numRuns: 1_000 },
    );
  });

  it("foreignMarkdown shows code unchanged, and tags outside of code as text", () => {
    const text =
      "Use `Map<K, V>`:\n\n```ts\nlet a: Map<K, V>; // <!-- -->\n```\n\n1. x\n   ```\n   <div>\n   ```\n\nNot <b>bold</b>.";
    const html = markdown.render(foreignMarkdown(text).join("\n"));
    expect(html).toContain("<code>Map&lt;K, V&gt;</code>");
    expect(html).toContain("let a: Map&lt;K, V&gt;; // &lt;!-- --&gt;");
    expect(html).toContain("<code>&lt;div&gt;\n</code>");
    expect(html).toContain("Not &lt;b&gt;bold&lt;/b&gt;.");
  });

  it("foreignMarkdown keeps the line breaks of a prompt (keepBreaks), but not those of a reply", () => {
    expect(markdown.render(foreignMarkdown("a\nb\n\nc", { keepBreaks: true }).join("\n"))).toBe(
      "<p>a<br>\nb</p>\n<p>c</p>\n",
    );
    expect(markdown.render(foreignMarkdown("a\nb").join("\n"))).toBe("<p>a\nb</p>\n");
  });

  it("codeSpan and plainMarkdown show a text literally", () => {
    for (const text of ["a_b_c", "`x` ``y``", "`", "*a* [b](c) <d> | e"]) {
      expect(markdown.renderInline(codeSpan(text))).toBe(`<code>${markdown.utils.escapeHtml(text)}</code>`);
      expect(markdown.renderInline(plainMarkdown(text))).toBe(markdown.utils.escapeHtml(text));
    }
  });

  it("a Markdown transcript has no control characters", () => {
    expect(documentOf("a\x1b[2J\x07b\u202ec\u009bd")).not.toMatch(/(?![\n\t])\p{Cc}|\u202e/u);
  });
});
