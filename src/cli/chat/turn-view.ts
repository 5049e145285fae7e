import { setImmediate as yieldToOthers } from "node:timers/promises";
import type { SessionEvent } from "@github/copilot-sdk";
import { callOf, type ToolCall, toolLine } from "../../runtime/history/transcript.js";
import { colour } from "../render/colour.js";
import { onOneLine } from "../render/layout.js";
import { shorten } from "../render/table.js";
import type { MarkdownStream } from "./markdown.js";
import { type Window, Work } from "./window.js";

const WAITING = "Waiting for the model";
/** How long one drawing may render text, in milliseconds. Keys that the user presses have to wait that long. */
const RENDER_MS = 25;

/** Shows one turn: the reply as Markdown, and a row for each tool call. */
export class TurnView extends Work {
  readonly #window: Pick<Window, "columns" | "print" | "changed">;
  readonly #markdown: MarkdownStream;
  /** The tool calls that run. */
  readonly #calls = new Map<string, ToolCall>();
  /** How many characters of each message have arrived in pieces. */
  readonly #streamed = new Map<string, number>();
  /** Arrived, and not rendered yet: text, rows of tool calls, and null at the end of each message. */
  readonly #arrived: (string | { call: string } | null)[] = [];
  /** The kind of the last finished row; null at the beginning and after the end of a message. */
  #last: "text" | "tool" | null = null;

  constructor(window: Pick<Window, "columns" | "print" | "changed">, markdown: MarkdownStream) {
    super(WAITING, 0);
    this.#window = window;
    this.#markdown = markdown;
  }

  push(event: SessionEvent): void {
    this.reason = null;
    switch (event.type) {
      case "assistant.message_delta": {
        const { messageId, deltaContent } = event.data;
        this.#streamed.set(messageId, (this.#streamed.get(messageId) ?? 0) + deltaContent.length);
        this.#arrived.push(deltaContent);
        break;
      }
      case "assistant.message":
        // Add the text that did not come in pieces. Some models send no pieces, and a broken connection loses some.
        this.#arrived.push(event.data.content.slice(this.#streamed.get(event.data.messageId) ?? 0), null);
        break;
      case "assistant.reasoning_delta":
        this.what = "Thinking";
        break;
      case "tool.execution_start":
        this.#calls.set(event.data.toolCallId, callOf({ ...event.data }, 0));
        break;
      case "tool.execution_complete":
        this.#endCall(event.data.toolCallId, { ...event.data });
        this.what = WAITING;
        break;
      case "session.compaction_start":
        this.what = "Summarizing the conversation so far";
        break;
      default:
        return;
    }
    this.#window.changed();
  }

  override take(columns: number): string[] {
    const rows: string[] = [];
    const until = performance.now() + RENDER_MS;
    while (this.#step(columns, rows) && performance.now() < until);
    return rows;
  }

  override live(columns: number): string[] {
    const open = this.#markdown.open(columns);
    const gap = open.length > 0 && this.#last !== "text" ? [""] : [];
    const calls = [...this.#calls.values()].map(({ name, argument }) => callRow(`${name}: ${argument} …`, columns));
    return [...gap, ...open, "", ...calls, ...this.row(columns)];
  }

  /** Call this when the turn is over. Prints everything that is left. */
  async finish(): Promise<void> {
    this.#arrived.push(null);
    for (const id of [...this.#calls.keys()]) this.#endCall(id, null);
    // The reply may be long, so let the process handle keys and signals after each step.
    const rows: string[] = [];
    while (this.#step(this.#window.columns, rows)) {
      this.#window.print(rows.splice(0));
      await yieldToOthers();
    }
    this.#window.print(rows);
  }

  #endCall(id: string, result: Record<string, unknown> | null): void {
    const call = this.#calls.get(id);
    if (call !== undefined) {
      const { text, outcome, remark } = toolLine(call, result);
      // Do not show the reason for a refusal, because the user has just refused the tool call.
      const end = outcome === "refused" ? outcome : remark;
      this.#arrived.push({ call: `${text.slice(0, -remark.length - 1)}${end})` });
    }
    this.#calls.delete(id);
  }

  /** Renders a bounded part of what arrived. Returns false only if there was nothing left to render. */
  #step(columns: number, rows: string[]): boolean {
    const text = this.#markdown.next(columns);
    const next = text === null ? this.#arrived.shift() : undefined;
    if (text !== null) this.#addRows("text", text, rows);
    else if (typeof next === "string") this.#markdown.add(next);
    else if (next === null) {
      this.#addRows("text", this.#markdown.end(columns), rows);
      if (this.#last === "text") this.#last = null;
    } else if (next !== undefined) this.#addRows("tool", [callRow(next.call, columns)], rows);
    return text !== null || next !== undefined;
  }

  #addRows(kind: "text" | "tool", added: readonly string[], rows: string[]): void {
    if (added.length === 0) return;
    if (this.#last !== kind) rows.push("");
    rows.push(...added);
    this.#last = kind;
  }
}

/** The row of a tool call: its name, its main argument, and its outcome, which stays if the row is too long. */
export function callRow(text: string, columns: number): string {
  return colour.dim(shorten(`⏺ ${onOneLine(text)}`, columns, "middle"));
}
