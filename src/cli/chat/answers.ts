import { dirname, normalize } from "node:path";
import type { PermissionHandler, SessionConfig } from "@github/copilot-sdk";
import { printableLines } from "../../base/values/text.js";
import { colour } from "../render/colour.js";
import { onOneLine } from "../render/layout.js";
import { shorten } from "../render/table.js";
import type { Window } from "./window.js";

type Decision = "once" | "session" | "no" | null;

/**
 * A turn of this chat. The server sends the agent's questions to all clients of the session, and each client answers
 * only those of its own turns. While this chat's prompt waits, the turn of another client may still run.
 */
export class OwnTurn {
  hasBegun = false;
  /**
   * The user's decisions about tool calls that have not ended, by the id of the call and by the request. A second
   * request about the same call gets the same decision: the runtime asks twice about some calls, both times before the
   * call ends (measured with 1.0.85).
   */
  readonly decided = new Map<string, Map<string, Decision>>();
}

/** The longest reason or warning in a question, in columns. A long text must not push the command off the screen. */
const LONGEST_NOTE = 160;

/** Puts the agent's permission requests and questions to the user. */
export class Questions {
  /** The present turn of this chat; null between two turns. */
  turn: OwnTurn | null = null;
  readonly #window: Pick<Window, "ask">;
  /** The keys (of {@link Described.scope}) that the user has allowed, by session id. */
  readonly #allowed = new Map<string, Set<string>>();
  /** Resolves when all earlier requests are answered. The next request waits for it: one answer may cover both. */
  #free: Promise<Decision> = Promise.resolve(null);

  constructor(window: Pick<Window, "ask">) {
    this.#window = window;
  }

  readonly onPermissionRequest: PermissionHandler = async (request, { sessionId }) => {
    const { turn } = this;
    // All clients of the session get the request. Let the client that runs the turn answer.
    if (turn?.hasBegun !== true) return { kind: "no-result" };
    // If asking fails, treat this request as unanswered, so that later requests still reach the user.
    this.#free = this.#free.then(async () => await this.#decide(request, sessionId, turn)).catch(() => null);
    const decision = await this.#free;
    if (decision === null) return { kind: "user-not-available" };
    if (decision === "no") return { kind: "reject", feedback: "The user does not allow this." };
    return { kind: "approve-once" };
  };

  async #decide(request: PermissionRequest, sessionId: string, turn: OwnTurn): Promise<Decision> {
    if (turn !== this.turn) return null;
    const described = describe(request);
    const { scope } = described;
    const allowed = this.#allowed.get(sessionId) ?? new Set();
    if (scope?.keys.every((key) => allowed.has(key)) === true) return "session";
    const { toolCallId } = request;
    const what = JSON.stringify([sessionId, request]);
    const earlier = toolCallId === undefined ? undefined : turn.decided.get(toolCallId);
    const known = earlier?.get(what);
    if (known !== undefined) return known;
    const decision = await this.#askFor(described);
    if (toolCallId !== undefined) turn.decided.set(toolCallId, new Map(earlier).set(what, decision));
    if (decision === "session") this.#allowed.set(sessionId, new Set([...allowed, ...(scope?.keys ?? [])]));
    return decision;
  }

  async #askFor({ question, body, notes, scope }: Described): Promise<Decision> {
    const lines = [
      colour.bold(onOneLine(question)),
      ...(body === "" ? [] : [printableLines(body)]),
      ...notes.map((note) => colour.dim(shorten(onOneLine(note), LONGEST_NOTE, "end"))),
    ];
    const label = `yes, and in this session do not ask again about ${onOneLine(scope?.label ?? "")}`;
    const choices = [
      { key: "y", label: "yes, once" },
      ...(scope === null ? [] : [{ key: "a", label }]),
      { key: "n", label: "no" },
    ];
    const answer = await this.#window.ask({ lines, choices });
    return answer === null ? null : answer === "y" ? "once" : answer === "a" ? "session" : "no";
  }

  readonly onUserInputRequest: UserInputHandler = async ({ question, choices = [], allowFreeform = true }) => {
    // If the question belongs to another client's turn, never settle, because the SDK would send any result or error
    // as the answer. The client that runs the turn has to answer.
    if (this.turn?.hasBegun !== true) await new Promise<never>(() => undefined);
    const lines = [
      colour.bold(printableLines(question)),
      ...choices.map((choice, index) => `${index + 1}. ${printableLines(choice)}`),
      ...(choices.length === 0 ? [] : [allowFreeform ? "A number or your own answer:" : "A number:"]),
    ];
    for (;;) {
      const answer = (await this.#window.ask({ lines, choices: null }))?.trim();
      if (answer === undefined) throw new Error("The user did not answer.");
      const chosen = choices[Number(answer) - 1] ?? choices.find((choice) => choice === answer);
      if (chosen !== undefined) return { answer: chosen, wasFreeform: false };
      if (allowFreeform && answer !== "") return { answer, wasFreeform: true };
    }
  };
}

type UserInputHandler = NonNullable<SessionConfig["onUserInputRequest"]>;

export type PermissionRequest = Parameters<PermissionHandler>[0];

/** A permission request in words for the user. */
interface Described {
  question: string;
  /** The text that the user should read before the answer, such as the command. */
  body: string;
  /** Reasons and warnings. */
  notes: string[];
  /**
   * The requests that a "yes" for the rest of the session covers: those whose keys the user has already allowed. Null
   * if the user must answer each request.
   */
  scope: { keys: string[]; label: string } | null;
}

export function describe(request: PermissionRequest): Described {
  const { question, body = "", notes = [], scope = null } = describeKind(request);
  const isBypass = "requestSandboxBypass" in request && request.requestSandboxBypass === true;
  const reason = ("requestSandboxBypassReason" in request && request.requestSandboxBypassReason) || "";
  const bypass = isBypass ? [`It asks to act outside of the sandbox. ${reason}`.trim()] : [];
  const isAlwaysAsked = isBypass || request.managedApprovalRequired === true;
  const shown = [...bypass, ...notes].filter((note): note is string => note !== undefined && note !== "");
  return { question, body, notes: shown, scope: isAlwaysAsked ? null : scope };
}

type DescribedKind = Pick<Described, "question"> &
  Partial<Pick<Described, "body" | "scope">> & { notes?: (string | undefined)[] };

function describeKind(request: PermissionRequest): DescribedKind {
  switch (request.kind) {
    case "shell": {
      const { fullCommandText: body, intention, warning } = request;
      return { question: "Run this command?", body, notes: [warning, intention], scope: scopeOfShell(request) };
    }
    case "write": {
      const { fileName, intention, diff, newFileContents = "", canOfferSessionApproval } = request;
      const scope = canOfferSessionApproval ? { keys: ["write"], label: "changes of files" } : null;
      return { question: `Write to the file ${fileName}?`, body: diff || newFileContents, notes: [intention], scope };
    }
    case "read": {
      const folder = dirname(normalize(request.path));
      const scope = { keys: [`read ${folder}`], label: `reading files directly in ${folder}` };
      return { question: `Read ${request.path}?`, notes: [request.intention], scope };
    }
    case "mcp": {
      const name = `${request.serverName}/${request.toolName}`;
      return { question: `Call the tool ${name}?`, body: asText(request.args), scope: scopeOf("mcp", name) };
    }
    case "custom-tool": {
      const { toolName, args } = request;
      return { question: `Call the tool ${toolName}?`, body: asText(args), scope: scopeOf("tool", toolName) };
    }
    case "url": {
      const { url, intention, redirectedFrom } = request;
      const from = redirectedFrom === undefined ? "" : `Redirected from ${redirectedFrom}`;
      const host = URL.canParse(url) ? new URL(url).host : url;
      return { question: "Fetch this address?", body: url, notes: [intention, from], scope: scopeOf("url", host) };
    }
    case "memory":
      return { question: "Remember this?", body: request.fact, notes: [request.reason] };
    case "hook": {
      const { toolName, toolArgs, hookMessage } = request;
      return { question: `Call the tool ${toolName}?`, body: asText(toolArgs), notes: [hookMessage] };
    }
    default:
      return { question: "Allow this?", body: asText(request) };
  }
}

/**
 * A "yes" for the rest of the session covers all commands that run the same programs. If the runtime does not offer
 * this for the command, or if the command redirects output to a file, it covers exactly this command.
 */
function scopeOfShell(request: Extract<PermissionRequest, { kind: "shell" }>): Described["scope"] {
  const { canOfferSessionApproval, commands, fullCommandText, hasWriteFileRedirection } = request;
  if (!canOfferSessionApproval || hasWriteFileRedirection || commands.length === 0)
    return { keys: [`command ${fullCommandText}`], label: "exactly this command" };
  const names = [...new Set(commands.map(({ identifier }) => identifier))];
  return { keys: names.map((name) => `program ${name}`), label: `commands of: ${names.join(", ")}` };
}

function scopeOf(kind: string, name: string): Described["scope"] {
  return { keys: [`${kind} ${name}`], label: name };
}

function asText(value: unknown): string {
  if (value === undefined) return "";
  return typeof value === "string" ? value : JSON.stringify(value, null, 2);
}
