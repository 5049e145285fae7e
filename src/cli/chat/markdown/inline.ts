import type { Token, Tokens } from "marked";
import { printableLines } from "../../../config/values/text.js";
import { colour } from "../../render/colour.js";
import type { Span, Style } from "../terminal/layout.js";

/** Whether there are no colours. If so, text keeps Markdown marks such as `**`: nothing else shows the emphasis. */
const isPlain = colour.level === 0;

const plain: Style = (text) => text;

/** The HTML entities that models write, with the characters to show for them. */
const ENTITIES: Readonly<Record<string, string>> = {
  "&lt;": "<",
  "&gt;": ">",
  "&amp;": "&",
  "&quot;": '"',
  "&#39;": "'",
  "&nbsp;": " ",
};

/** Turns the inline elements of a block into styled text. */
export function inlineSpans(tokens: readonly Token[] | undefined, style: Style = plain): Span[] {
  return (tokens ?? []).flatMap((token) => spansOf(token as Tokens.Generic, style));
}

/** Turns a text into spans without interpreting Markdown in it. */
export function plainSpans(text: string, style: Style = plain): Span[] {
  return [{ text: printableLines(text), style }];
}

function spansOf(token: Tokens.Generic, style: Style): Span[] {
  const inner = (look: Style, mark = "") => {
    const both: Style = (text) => look(style(text));
    return [...marked(mark, style), ...inlineSpans(token.tokens, both), ...marked(mark, style)];
  };
  switch (token.type) {
    case "strong":
      return inner(colour.bold, "**");
    case "em":
      return inner(colour.italic, "*");
    case "del":
      return inner(colour.strikethrough, "~~");
    case "codespan":
      return [
        ...marked("`", style),
        ...plainSpans(token.text, (text) => colour.cyan(style(text))),
        ...marked("`", style),
      ];
    case "br":
      return [{ text: "\n" }];
    case "link":
      return [...inner(colour.underline), ...address(token as Tokens.Link, style)];
    case "image":
      return plainSpans(`[${token.text === "" ? "image" : token.text}] (${token.href})`, style);
    case "text":
      if (token.tokens !== undefined) return inlineSpans(token.tokens, style);
      return plainSpans(decoded(token.text), style);
    case "escape":
      return plainSpans(token.text, style);
    default:
      return plainSpans(token.raw, style); // HTML, and elements that a later version of the parser may add
  }
}

/** The address of a link, written out because a clickable link would hide it. Nothing if the link's text shows it. */
function address({ href, text }: Tokens.Link, style: Style): Span[] {
  if (href === text || href === `mailto:${text}` || href === "") return [];
  return plainSpans(` (${href})`, (address) => colour.dim(style(address)));
}

function marked(mark: string, style: Style): Span[] {
  return isPlain && mark !== "" ? [{ text: mark, style }] : [];
}

function decoded(text: string): string {
  return text.replace(/&(?:lt|gt|amp|quot|#39|nbsp);/g, (entity) => ENTITIES[entity] ?? entity);
}
