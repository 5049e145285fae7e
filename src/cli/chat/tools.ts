import type { SessionEvent } from "@github/copilot-sdk";
import { printableLines } from "../../config/values/text.js";
import { callOf, type ToolCall, toolLine } from "../../runtime/history/tool-call.js";
import { colour } from "../render/colour.js";
import { shorten } from "../render/table.js";
import { onOneLine, widthOf, wrap } from "./terminal/layout.js";

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
    return [this.row(columns), ...parts.flatMap((part) => wrap([{ text: printableLines(part.trimEnd()) }], columns))];
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
