import { setImmediate as yieldToOthers } from "node:timers/promises";
import type { SessionEvent } from "@github/copilot-sdk";
import { printableLines } from "../../base/values/text.js";
import { callOf, type ToolCall, toolLine } from "../../runtime/history/transcript.js";
import { colour } from "../render/colour.js";
import { type Report, renderProgress } from "../render/progress.js";
import { shorten } from "../render/table.js";
import { onOneLine, widthOf, wrap } from "./layout.js";
import type { MarkdownStream } from "./markdown.js";
import type { LivePart, Window } from "./window.js";

const FRAMES = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

/** The row that shows that an operation is still running, and for how long. */
export class SignOfLife {
  readonly #begunAt = performance.now();
  #reported: { report: Report; at: number } | null = null;

  get ageMs(): number {
    return performance.now() - this.#begunAt;
  }

  /** The reason for a wait, which the row shows; null if nothing waits. */
  set reason(report: Report | null) {
    this.#reported = report === null ? null : { report, at: performance.now() };
  }

  row(what: string, columns: number): string {
    const now = performance.now();
    const { report = null, at = now } = this.#reported ?? {};
    const text = renderProgress(what, report, { begunMs: this.ageMs, reportedMs: now - at });
    const frame = FRAMES[Math.floor(now / 100) % FRAMES.length];
    return colour.dim(
      shorten(`${frame} ${text.includes("Ctrl-C") ? text : `${text}. Ctrl-C cancels.`}`, columns, "end"),
    );
  }
}

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
    const text = this.#markdown.next(columns);
    if (text !== null) {
      this.#addRows("text", text, rows);
      return true;
    }
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

type Started = Extract<SessionEvent, { type: "tool.execution_start" }>["data"];
type Completed = Extract<SessionEvent, { type: "tool.execution_complete" }>["data"];

/** The result of a call. "runs" until the call has a result, and null if the turn ended without a result. */
type Result = Completed | "runs" | null;

/** The most characters of an argument or outcome that a row may show. The width of a longer text is slow to measure. */
const LONGEST_ROW = 1_000;
/** `/tools` shows at most this much of a result, in characters. */
const LONGEST_RESULT = 20_000;

/** A tool call of a turn, as the chat shows it. */
export class ShownCall {
  readonly #started: Started;
  readonly #call: ToolCall;
  #result: Result = "runs";

  constructor(started: Started) {
    this.#started = started;
    this.#call = callOf({ ...started }, 0);
  }

  end(result: Completed | null): void {
    this.#result = result;
  }

  /** One row with the name, the shortened main argument, and the outcome. */
  row(columns: number): string {
    const name = shorten(onOneLine(this.#call.name), Math.min(40, Math.floor(columns / 2)), "end");
    const { remark, isOk } = this.#remark();
    const room = columns - widthOf(`⏺ ${name}  `);
    const least = Math.max(4, Math.min(12, room - 5));
    const end = shorten(onOneLine(remark.slice(0, LONGEST_ROW)), Math.max(least, Math.floor(room / 2)), "end");
    const argument = shorten(
      onOneLine(this.#call.argument.slice(0, LONGEST_ROW)),
      Math.max(1, room - widthOf(end) - 1),
      "end",
    );
    const style = this.#result === "runs" ? colour.dim : isOk ? colour.green : colour.yellow;
    return [style("⏺"), colour.bold(name), ...(argument === "" ? [] : [argument]), style(end)].join(" ");
  }

  /** The rows for `/tools`: all arguments and the result. */
  details(columns: number): string[] {
    const { arguments: args } = this.#started;
    const result = this.#result === "runs" || this.#result === null ? undefined : this.#result;
    const text = result?.result?.content ?? result?.error?.message ?? "";
    const rest = text.length > LONGEST_RESULT ? `\n… ${text.length - LONGEST_RESULT} more characters` : "";
    const parts = [...named(args), ...(text === "" ? [] : [`→ ${text.slice(0, LONGEST_RESULT)}${rest}`])];
    return [this.row(columns), ...parts.flatMap((part) => wrap(printableLines(part.trimEnd()), columns))];
  }

  #remark(): { remark: string; isOk: boolean } {
    if (this.#result === "runs") return { remark: "…", isOk: true };
    const { outcome, remark } = toolLine(this.#call, this.#result === null ? null : { ...this.#result });
    // Do not show the reason for a refusal, because the user has just refused the tool call.
    if (outcome === "refused") return { remark: outcome, isOk: false };
    return remark === "completed" ? { remark: "ok", isOk: true } : { remark, isOk: false };
  }
}

/** The arguments of a call, each with its name. */
function named(args: unknown): string[] {
  if (typeof args !== "object" || args === null) return args === undefined ? [] : [String(args)];
  return Object.entries(args).map(
    ([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`,
  );
}
