import { isObject } from "../../config/values/json.js";

/** `refused`: a person or the fleet's rules did not allow it. `unfinished`: the history has no result. */
export type ToolOutcome = "completed" | "failed" | "refused" | "unfinished";

export interface ToolCall {
  name: string;
  /** The first argument that is a string, such as a command, a path or a pattern. Empty if no argument is a string. */
  argument: string;
  startedAtMs: number;
}

/** Longer names, arguments and messages are truncated, because a tool call is one line of a transcript. */
const MOST_CHARACTERS = 200;
const REFUSED = new Set<unknown>(["rejected", "denied"]);

/** @param data the data of the call's `tool.execution_start` */
export function callOf(data: Record<string, unknown>, startedAtMs: number): ToolCall {
  const given = isObject(data.arguments) ? Object.values(data.arguments) : [data.arguments];
  const argument = given.find((value): value is string => typeof value === "string") ?? "";
  const name = typeof data.toolName === "string" && data.toolName !== "" ? data.toolName : "tool";
  return { name: folded(name), argument: folded(argument), startedAtMs };
}

/** @param result the data of the call's `tool.execution_complete`; null if the history does not contain this event */
export function toolLine(
  { name, argument }: ToolCall,
  result: Record<string, unknown> | null,
): { text: string; outcome: ToolOutcome; remark: string } {
  const outcome = outcomeOf(result);
  const call = argument === "" ? name : `${name}: ${argument}`;
  const remark = remarkOn(outcome, result ?? {});
  return { text: `${call} (${remark})`, outcome, remark };
}

function outcomeOf(result: Record<string, unknown> | null): ToolOutcome {
  // A result that is too long to be read has no outcome either.
  if (result === null || typeof result.success !== "boolean") return "unfinished";
  if (result.success) return "completed";
  return isObject(result.error) && REFUSED.has(result.error.code) ? "refused" : "failed";
}

function remarkOn(outcome: ToolOutcome, { error, shellExecution, abridged }: Record<string, unknown>): string {
  if (abridged === true) return "its result is too long to be read";
  const exitCode = isObject(shellExecution) ? shellExecution.exitCode : undefined;
  if (outcome === "completed" && typeof exitCode === "number" && exitCode !== 0) return `exit code ${exitCode}`;
  const message = isObject(error) && typeof error.message === "string" ? folded(error.message) : "";
  return message === "" || outcome === "completed" || outcome === "unfinished" ? outcome : `${outcome}: ${message}`;
}

/** The text in one line, truncated to {@link MOST_CHARACTERS} characters. */
function folded(text: string): string {
  const line = text
    .slice(0, 4 * MOST_CHARACTERS)
    .replace(/\s+/g, " ")
    .trim();
  const characters = Array.from(line);
  return characters.length <= MOST_CHARACTERS ? line : `${characters.slice(0, MOST_CHARACTERS - 1).join("")}…`;
}
