import { printable, printableLines } from "../../base/values/text.js";
import type { TranscriptEntry } from "../../runtime/history/transcript.js";
import type { SessionView } from "../../sessions/view.js";
import { colour } from "./colour.js";
import { shorten, terminalWidth } from "./table.js";

/** Renders the entries of a transcript one after another. */
interface TranscriptText {
  heading(session: SessionView): string;
  entry(entry: TranscriptEntry): string;
}

/**
 * The format for people. The text of an entry is indented, so that it cannot look like the heading of another entry. On
 * a terminal, a tool call is shortened to one line. A pipe gets the complete tool call.
 */
export class PlainTranscript implements TranscriptText {
  #before: TranscriptEntry["role"] | null = null;

  heading(): string {
    return "";
  }

  entry({ role, text, at, turn, user, attachments, failure }: TranscriptEntry): string {
    const gap = this.#before === null || (role === "tool" && this.#before === "tool") ? "" : "\n";
    this.#before = role;
    if (role === "tool") {
      const line = shorten(`  [tool] ${printable(text)}`, terminalWidth(), "end");
      return `${gap}${colour.dim(line)}\n`;
    }
    const who = role === "user" ? (user ?? "user") : "assistant";
    const lines = [
      `${gap}${colour.bold(who)}  ${colour.dim(role === "user" ? `${shortTime(at)}  turn ${turn}` : shortTime(at))}`,
      ...(text === "" ? [] : indented(printableLines(text).split("\n"))),
      ...(attachments.length === 0 ? [] : [`  [attached] ${attachments.map(printable).join(", ")}`]),
      ...(failure === null ? [] : [`  ${colour.yellow(`[incomplete] ${printable(failure)}`)}`]),
    ];
    return `${lines.join("\n")}\n`;
  }
}

/** The format for a file. Each entry is a list item, which also ends all Markdown that the entry opens. */
export class MarkdownTranscript implements TranscriptText {
  #turn = 0;

  heading({ id, owner, createdAt }: SessionView): string {
    return `# Session ${codeSpan(id)}\n\nOwner: ${plainMarkdown(owner)}. Created: ${shortTime(createdAt)}.\n`;
  }

  entry({ role, text, at, turn, user, attachments, failure }: TranscriptEntry): string {
    const heading = turn === this.#turn ? "" : `\n## Turn ${turn}\n`;
    this.#turn = turn;
    if (role === "tool") return `${heading}\n- Tool: ${codeSpan(printable(text))}\n`;
    const who = role === "user" ? (user ?? "user") : "assistant";
    const blocks = [
      foreignMarkdown(printableLines(text), { keepBreaks: role === "user" }),
      attachments.length === 0 ? [] : [`Attached: ${attachments.map((name) => codeSpan(printable(name))).join(", ")}`],
      failure === null ? [] : [`Incomplete: ${codeSpan(printable(failure))}`],
    ];
    const lines = blocks.filter((block) => block.join("") !== "").map((block) => indented(block).join("\n"));
    return `${[`${heading}\n- **${plainMarkdown(who)}**, ${shortTime(at)}`, ...lines].join("\n\n")}\n`;
  }
}

function indented(lines: readonly string[]): string[] {
  return lines.map((line) => (line === "" ? "" : `  ${line}`));
}

function shortTime(at: string): string {
  return at.replace(/\.\d+Z$/, "Z");
}

/*
 * Puts Markdown that somebody else wrote into a document of ours. The caller indents the lines, so that they are in a
 * list item. Everything that a line opens, such as a code block, then ends with the item. Only HTML could reach beyond
 * the item, because an HTML comment without an end hides everything after it. So we turn HTML into visible text. In
 * code, HTML is already text.
 *
 * In doubt, treat a line as text outside of code. An escape in code is only ugly, but HTML outside of code is harmful.
 */

/**
 * Turns a text into lines of Markdown that are harmless in a list item. Headings become two levels lower.
 *
 * @param options.keepBreaks whether a line break in a paragraph stays a line break
 */
export function foreignMarkdown(text: string, { keepBreaks = false } = {}): string[] {
  const lines: string[] = [];
  let fence: Fence | null = null;
  let knowsCode = true;
  const given = text.split("\n");
  for (const [at, line] of given.entries()) {
    if (fence !== null && !isBehind(line, fence)) {
      lines.push(fence.indent === 0 ? line : withoutComments(line));
      if (isEnd(line, fence)) fence = null;
      continue;
    }
    fence = fenceOf(line);
    if (fence?.indent === 0 || line.trim() === "") knowsCode = true;
    if (fence !== null) {
      lines.push(asText(line));
      continue;
    }
    const safe = withoutHtml(line, knowsCode);
    knowsCode = safe.knowsCode;
    const isContinued = (given[at + 1] ?? "").trim() !== "";
    lines.push(withLowerHeading(safe.line) + (keepBreaks && isContinued ? "  " : ""));
  }
  return lines;
}

/** One line as inline code. */
export function codeSpan(text: string): string {
  const line = text.replace(/\s+/g, " ");
  const longest = (line.match(/`+/g) ?? []).reduce((most, run) => Math.max(most, run.length), 0);
  const mark = "`".repeat(longest + 1);
  const pad = /^`|`$/.test(line) || line.trim() === "" ? " " : "";
  return `${mark}${pad}${line}${pad}${mark}`;
}

/** One line of text in which all characters with a meaning in Markdown are escaped. */
export function plainMarkdown(text: string): string {
  return text.replace(/[\\`*_~<>[\]#|&]/g, "\\$&");
}

interface Fence {
  /**
   * The number of spaces before the fence. Without spaces, we know where the code block ends. Otherwise, the fence may
   * be in a list item, and the block then ends with that item.
   */
  indent: number;
  mark: string;
}

function fenceOf(line: string): Fence | null {
  const [, indent = "", mark] = /^( *)(`{3,}(?=[^`]*$)|~{3,})/.exec(line) ?? [];
  return mark === undefined ? null : { indent: indent.length, mark };
}

function isEnd(line: string, { indent, mark }: Fence): boolean {
  const [, before = "", end] = /^( *)(`{3,}|~{3,}) *$/.exec(line) ?? [];
  return end !== undefined && end[0] === mark[0] && end.length >= mark.length && before.length <= indent + 3;
}

function isBehind(line: string, { indent }: Fence): boolean {
  return line.trim() !== "" && line.search(/[^ ]/) < indent;
}

function asText(line: string): string {
  return line.replace(/<(?=[a-z/!?])/gi, "&lt;");
}

function withoutComments(line: string): string {
  return line.replace(/<(?=[!?])/g, "&lt;");
}

/**
 * Turns the HTML of a line into visible text, except in inline code.
 *
 * @param knowsCode false if a backtick before this line may begin code that ends in this line
 * @returns the line, and `knowsCode` for the next line
 */
function withoutHtml(line: string, knowsCode: boolean): { line: string; knowsCode: boolean } {
  if (!knowsCode || line.includes("\\`")) return { line: asText(line), knowsCode: false };
  const parts: string[] = [];
  for (let rest = line; ; ) {
    const open = /`+/.exec(rest);
    if (open === null) return { line: [...parts, asText(rest)].join(""), knowsCode: true };
    const [mark] = open;
    const inside = open.index + mark.length;
    const length = new RegExp(`(?<!\`)${mark}(?!\`)`).exec(rest.slice(inside))?.index;
    // The line may be in a table. Then a bar ends the cell, and the code ends with the cell.
    if (length === undefined || rest.slice(inside, inside + length).includes("|")) {
      return { line: [...parts, asText(rest)].join(""), knowsCode: false };
    }
    const end = inside + length + mark.length;
    parts.push(asText(rest.slice(0, open.index)), rest.slice(open.index, end));
    rest = rest.slice(end);
  }
}

function withLowerHeading(line: string): string {
  return line.replace(
    /^( {0,3})(#{1,6})(?=[ \t]|$)/,
    (_, indent: string, marks: string) => indent + "#".repeat(Math.min(6, marks.length + 2)),
  );
}
