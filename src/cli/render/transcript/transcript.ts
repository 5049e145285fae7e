import { printable, printableLines } from "../../../config/values/text.js";
import type { TranscriptEntry } from "../../../runtime/history/transcript.js";
import type { SessionView } from "../../../sessions/view.js";
import { colour } from "../colour.js";
import { shorten, terminalWidth } from "../table.js";
import { codeSpan, foreignMarkdown, plainMarkdown } from "./markdown.js";

/** Renders the entries of a transcript one after another. */
export interface TranscriptText {
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
