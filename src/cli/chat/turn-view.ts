import { setImmediate as yieldToOthers } from "node:timers/promises";
import type { SessionEvent } from "@github/copilot-sdk";
import type { Report } from "../render/progress.js";
import type { MarkdownStream } from "./markdown/stream.js";
import { SignOfLife } from "./sign-of-life.js";
import type { LivePart, Window } from "./terminal/window.js";
import { ShownCall } from "./tools.js";

const WAITING = "Waiting for the model";
/** How long one drawing may render text, in milliseconds. Keys that the user presses have to wait that long. */
const RENDER_MS = 25;

/** A part of the turn that has arrived and is not rendered yet. */
type Arrived = { kind: "text"; text: string } | { kind: "end" } | { kind: "tool"; call: ShownCall };

/** Shows one turn: the reply as Markdown, a row for each tool call, and a row that shows that the turn still runs. */
export class TurnView implements LivePart {
  readonly #window: Window;
  readonly #markdown: MarkdownStream;
  readonly #sign = new SignOfLife();
  readonly #tools = new Map<string, ShownCall>();
  /** How many characters of each message have arrived in pieces. */
  readonly #streamed = new Map<string, number>();
  readonly #arrived: Arrived[] = [];
  #activity = WAITING;
  readonly #calls: ShownCall[] = [];
  /** The kind of the last finished row; null at the beginning and after the end of a message. */
  #last: "text" | "tool" | null = null;

  constructor(window: Window, markdown: MarkdownStream) {
    this.#window = window;
    this.#markdown = markdown;
  }

  push(event: SessionEvent): void {
    this.#sign.reason = null;
    switch (event.type) {
      case "assistant.message_delta":
        this.#addPiece(event.data);
        break;
      case "assistant.message":
        // Add the text that did not come in pieces. Some models send no pieces, and a broken connection loses some.
        this.#addText(event.data.content.slice(this.#streamed.get(event.data.messageId) ?? 0));
        this.#arrived.push({ kind: "end" });
        break;
      case "assistant.reasoning_delta":
        this.#activity = "Thinking";
        break;
      case "tool.execution_start":
        this.#tools.set(event.data.toolCallId, new ShownCall(event.data));
        break;
      case "tool.execution_complete":
        this.#endTool(event.data.toolCallId, event.data);
        this.#activity = WAITING;
        break;
      case "session.compaction_start":
        this.#activity = "Summarizing the conversation so far";
        break;
      default:
        return;
    }
    this.#window.changed();
  }

  /** The tool calls that have ended. */
  get calls(): readonly ShownCall[] {
    return this.#calls;
  }

  /** Shows the reason why the turn waits. */
  report(report: Report): void {
    this.#sign.reason = report;
    this.#window.changed();
  }

  take(columns: number): string[] {
    const rows: string[] = [];
    const until = performance.now() + RENDER_MS;
    while (this.#step(columns, rows)) {
      if (performance.now() < until) continue;
      this.#window.changed();
      break;
    }
    return rows;
  }

  live(columns: number, height: number, isAsked: boolean): string[] {
    const open = this.#markdown.open(columns);
    const gap = open.length > 0 && this.#last !== "text" ? [""] : [];
    const tools = [...this.#tools.values()].map((call) => call.row(columns));
    const below = ["", ...tools, isAsked ? "" : this.#sign.row(this.#activity, columns)];
    return [...[...gap, ...open].slice(-Math.max(1, height - below.length)), ...below].slice(-height);
  }

  /** Call this when the turn is over. Prints everything that is left. */
  async finish(): Promise<void> {
    this.#arrived.push({ kind: "end" });
    for (const id of [...this.#tools.keys()]) this.#endTool(id, null);
    const rows: string[] = [];
    // The reply may be long, so let the process handle keys and signals after each step.
    while (this.#step(this.#window.columns, rows)) {
      this.#window.print(rows.splice(0));
      await yieldToOthers();
    }
    this.#window.print(rows);
  }

  #addPiece({ messageId, deltaContent }: { messageId: string; deltaContent: string }): void {
    this.#streamed.set(messageId, (this.#streamed.get(messageId) ?? 0) + deltaContent.length);
    this.#addText(deltaContent);
  }

  #addText(text: string): void {
    const last = this.#arrived.at(-1);
    if (last?.kind === "text") last.text += text;
    else if (text !== "") this.#arrived.push({ kind: "text", text });
  }

  #endTool(id: string, result: Parameters<ShownCall["end"]>[0]): void {
    const call = this.#tools.get(id);
    this.#tools.delete(id);
    if (call === undefined) return;
    call.end(result);
    this.#calls.push(call);
    this.#arrived.push({ kind: "tool", call });
  }

  /** Renders a bounded part of what arrived. Returns false only if there was nothing left to render. */
  #step(columns: number, rows: string[]): boolean {
    const { rows: text, more } = this.#markdown.take(columns);
    this.#addRows("text", text, rows);
    if (more) return true;
    const next = this.#arrived.shift();
    if (next?.kind === "text") this.#markdown.add(next.text);
    else if (next?.kind === "end") {
      this.#addRows("text", this.#markdown.end(columns), rows);
      if (this.#last === "text") this.#last = null;
    } else if (next?.kind === "tool") this.#addRows("tool", [next.call.row(columns)], rows);
    return next !== undefined;
  }

  #addRows(kind: "text" | "tool", added: readonly string[], rows: string[]): void {
    if (added.length === 0) return;
    if (this.#last !== kind) rows.push("");
    rows.push(...added);
    this.#last = kind;
  }
}
