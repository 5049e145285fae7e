import type { TurnOutcome } from "../../base/session.js";
import { isObject } from "../../base/values/text.js";
import { type HistoryEvent, type Line, LineSplitter, LONGEST_LINE_BYTES, readEvent } from "./line.js";
import { type EndedTurn, MOST_PENDING, reasonOf, TurnTracker } from "./turn-tracker.js";

/** One part of a conversation. */
export interface TranscriptEntry {
  /** ISO 8601, UTC, by the clock of the server's machine. */
  at: string;
  role: "user" | "assistant" | "tool";
  /** The prompt, or the model's text. For a tool call: its name, its main argument and its outcome, in one line. */
  text: string;
  /** The number of the turn in the session, from 1. */
  turn: number;
  /** The sender of the prompt. Null if the fleet does not know the sender, and for entries of other roles. */
  user: string | null;
  /** The names of the files that came with the prompt. */
  attachments: string[];
  /** Null unless the role is `tool`. */
  tool: { name: string; outcome: ToolOutcome } | null;
  /** Why the turn ended without a complete reply. Null for all other entries. */
  failure: string | null;
  /** How the turn ended, in an entry with `failure`. Null for all other entries, and while the turn may still run. */
  outcome: TurnOutcome | null;
}

/** The unreadable lines of a history. */
interface Damage {
  lines: number;
  /** The number of the first such line, from 1. */
  firstLine: number;
}

const LEFT_OUT = "(longer than 16 MB, and left out)";
const NO_END = "The history has no end of this turn: it still runs, or its server ended.";
const CUT = "The server ended, or unloaded the session, during the turn.";

/**
 * Makes a transcript from the bytes of a session's history. Leaves out everything that is not part of the conversation:
 * the system prompt, sub-agents, and prompts that the runtime made itself. A compaction changes only what the runtime
 * sends to the model, so the transcript continues across it.
 */
export class Transcriber {
  readonly #user: string | null;
  readonly #splitter = new LineSplitter({ wholeBytes: LONGEST_LINE_BYTES });
  readonly #tracker = new TurnTracker();
  /** The tool calls that have no outcome so far, by id. */
  readonly #calls = new Map<string, ToolCall>();
  #turn = 0;
  #line = 0;
  /** Null if all lines could be read. */
  damage: Damage | null = null;
  #lastError: string | null = null;
  #lastAtMs = 0;

  /** @param user the sender of the prompts; null if it is not known */
  constructor(user: string | null) {
    this.#user = user;
  }

  /** Whether the last turn has no end in the bytes that were read so far. */
  get isInTurn(): boolean {
    return this.#tracker.open !== null;
  }

  /** Whether {@link pause} will end the last turn if nothing is added to the history. */
  get isFading(): boolean {
    return this.#tracker.isDoubtful;
  }

  /** Reads the next bytes of the history. Yields the entries that these bytes complete. */
  *push(bytes: Buffer): Generator<TranscriptEntry> {
    for (const line of this.#splitter.push(bytes)) yield* this.#takeLine(line);
  }

  /**
   * Call this after reading the history to its end, if more may be added later. Yields the end of a turn that seems to
   * be over.
   */
  *pause(nowMs: number): Generator<TranscriptEntry> {
    const ended = this.#tracker.endIfQuiet(nowMs);
    if (ended !== null) yield* this.#endTurn(ended, this.#turn);
  }

  /**
   * Call this after reading the history to its end, if nobody will read further. Yields the last entries.
   *
   * @param isLoaded whether a server has the session in its memory. If not, no turn can be in flight.
   */
  *end(nowMs: number, isLoaded: boolean): Generator<TranscriptEntry> {
    const rest = this.#splitter.end();
    if (rest !== null) yield* this.#takeLine(rest);
    yield* this.pause(nowMs);
    const { open } = this.#tracker;
    yield* this.#endCalls(this.#turn);
    if (open !== null)
      yield this.#entry(
        "assistant",
        this.#lastAtMs,
        this.#turn,
        isLoaded ? { failure: NO_END } : { failure: CUT, outcome: "cut" },
      );
  }

  *#takeLine(line: Line): Generator<TranscriptEntry> {
    this.#line++;
    const event = readEvent(line);
    if (event !== null) return yield* this.#take(event);
    if ("whole" in line && line.whole.length === 0) return;
    this.damage ??= { lines: 0, firstLine: this.#line };
    this.damage.lines++;
  }

  *#take(event: HistoryEvent): Generator<TranscriptEntry> {
    const { type, data, agentId, atMs } = event;
    if (agentId === null && type === "session.error") {
      const message = textOf(data.message);
      this.#lastError = message === null ? null : reasonOf(message);
    }
    const before = this.#tracker.open;
    const ended = this.#tracker.push(event);
    if (ended !== null) yield* this.#endTurn(ended, this.#turn);
    const { open } = this.#tracker;
    if (open !== null && open !== before) {
      this.#turn++;
      this.#lastError = null;
    }
    if (agentId === null) yield* this.#entriesOf(type, data, atMs);
    this.#lastAtMs = atMs;
  }

  *#entriesOf(type: string, data: Record<string, unknown>, atMs: number): Generator<TranscriptEntry> {
    switch (type) {
      case "user.message":
        if (isMadeByRuntime(data)) return;
        yield this.#entry("user", atMs, this.#turn, {
          text: textOf(data.content) ?? (data.abridged === true ? LEFT_OUT : ""),
          user: this.#user,
          attachments: namesOf(data.attachments),
        });
        return;
      case "assistant.message": {
        const text = textOf(data.content) ?? (data.abridged === true ? LEFT_OUT : "");
        if (text !== "") yield this.#entry("assistant", atMs, this.#turn, { text });
        return;
      }
      case "tool.execution_start":
        if (typeof data.toolCallId === "string" && this.#calls.size < MOST_PENDING)
          this.#calls.set(data.toolCallId, callOf(data, atMs));
        return;
      case "tool.execution_complete": {
        const id = typeof data.toolCallId === "string" ? data.toolCallId : "";
        const call = this.#calls.get(id);
        if (call === undefined) return;
        this.#calls.delete(id);
        yield this.#toolEntry(call, atMs, this.#turn, data);
        return;
      }
    }
  }

  *#endTurn({ outcome, endedAtMs }: EndedTurn, turn: number): Generator<TranscriptEntry> {
    yield* this.#endCalls(turn);
    const failure = {
      completed: null,
      failed: this.#lastError ?? "The turn failed.",
      aborted: "The turn was cancelled.",
      cut: CUT,
    }[outcome];
    if (failure !== null) yield this.#entry("assistant", endedAtMs, turn, { failure, outcome });
  }

  *#endCalls(turn: number): Generator<TranscriptEntry> {
    for (const call of this.#calls.values()) yield this.#toolEntry(call, call.startedAtMs, turn, null);
    this.#calls.clear();
  }

  #toolEntry(call: ToolCall, atMs: number, turn: number, result: Record<string, unknown> | null): TranscriptEntry {
    const { text, outcome } = toolLine(call, result);
    return this.#entry("tool", atMs, Math.max(1, turn), { text, tool: { name: call.name, outcome } });
  }

  #entry(role: TranscriptEntry["role"], atMs: number, turn: number, rest: Partial<TranscriptEntry>): TranscriptEntry {
    const at = new Date(atMs).toISOString();
    return {
      at,
      role,
      text: "",
      turn: Math.max(1, turn),
      user: null,
      attachments: [],
      tool: null,
      failure: null,
      outcome: null,
      ...rest,
    };
  }
}

function textOf(value: unknown): string | null {
  return typeof value === "string" ? value : null;
}

/**
 * Whether the runtime itself made a prompt, for example to continue in autopilot, or to pass on a skill's text. Its
 * `source` then names a part of the runtime.
 */
function isMadeByRuntime({ isAutopilotContinuation, source }: Record<string, unknown>): boolean {
  return isAutopilotContinuation === true || (typeof source === "string" && source !== "user");
}

/** The runtime removes the content of an attachment from the history, but keeps its name. */
function namesOf(attachments: unknown): string[] {
  if (!Array.isArray(attachments)) return [];
  return attachments.filter(isObject).map(({ displayName, title, path, url, type }) => {
    const names = [displayName, title, path, url, type];
    return names.find((name): name is string => typeof name === "string" && name !== "") ?? "?";
  });
}

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
