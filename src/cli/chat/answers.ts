import { dirname, normalize } from "node:path";
import type { PermissionHandler, SessionConfig } from "@github/copilot-sdk";
import { printableLines } from "../../base/values/text.js";
import { colour } from "../render/colour.js";
import { shorten } from "../render/table.js";
import { onOneLine } from "./layout.js";
import type { OwnTurn, Window } from "./window.js";

type Decision = "once" | "session" | "no" | null;

/** A permission request, and the turn in which it arrived. */
interface Asked {
  request: PermissionRequest;
  sessionId: string;
  turn: OwnTurn;
  /** How many tool calls with the same id had ended when the request arrived. */
  endedCalls: number;
}

/** The longest reason or warning in a question, in columns. A long text must not push the command off the screen. */
const LONGEST_NOTE = 160;

/** Asks the user about the tool calls of a turn, and remembers what the user has allowed for the rest of a session. */
export class Approvals {
  readonly #window: Pick<Window, "ask" | "turn">;
  /** The keys (of {@link Described.scope}) that the user has allowed, by session id. */
  readonly #allowed = new Map<string, Set<string>>();
  /**
   * The user's decisions about tool calls of the present turn. A second request about the same call gets the same
   * decision: the runtime asks twice about some calls, both times before the call ends (measured with 1.0.85).
   */
  readonly #answered = new Map<string, { decision: Decision; endedCalls: number }>();
  #turn: OwnTurn | null = null;
  /** Resolves when all earlier requests are answered. The next request waits for it: one answer may cover both. */
  #free: Promise<Decision> = Promise.resolve(null);

  constructor(window: Pick<Window, "ask" | "turn">) {
    this.#window = window;
  }

  readonly handler: PermissionHandler = async (request, { sessionId }) => {
    const { turn } = this.#window;
    const endedCalls = turn?.endedCalls(request.toolCallId ?? "") ?? 0;
    // All clients of the session get the request. Let the client that runs the turn answer.
    if (turn === null || !(await turn.asks())) return { kind: "no-result" };
    const asked = { request, sessionId, turn, endedCalls };
    // If asking fails, treat this request as unanswered, so that later requests still reach the user.
    this.#free = this.#free.then(async () => await this.#decide(asked)).catch(() => null);
    switch (await this.#free) {
      case "once":
      case "session":
        return { kind: "approve-once" };
      case "no":
        return { kind: "reject", feedback: "The user does not allow this." };
      default:
        return { kind: "user-not-available" };
    }
  };

  async #decide({ request, sessionId, turn, endedCalls }: Asked): Promise<Decision> {
    if (turn !== this.#window.turn) return null;
    if (turn !== this.#turn) this.#answered.clear();
    this.#turn = turn;
    const described = describe(request);
    const allowed = this.#allowed.get(sessionId) ?? new Set();
    if (described.scope?.keys.every((key) => allowed.has(key)) === true) return "session";
    const call = JSON.stringify([sessionId, request]);
    const known = this.#answered.get(call);
    this.#answered.delete(call);
    if (known?.endedCalls === endedCalls) return known.decision;
    const decision = await this.#ask(described);
    if (request.toolCallId !== undefined) this.#answered.set(call, { decision, endedCalls });
    if (decision !== "session") return decision;
    this.#allowed.set(sessionId, new Set([...allowed, ...(described.scope?.keys ?? [])]));
    return decision;
  }

  async #ask({ question, body, notes, scope }: Described): Promise<Decision> {
    const lines = [
      colour.bold(onOneLine(question)),
      ...(body === "" ? [] : [printableLines(body)]),
      ...notes.map((note) => colour.dim(shorten(onOneLine(note), LONGEST_NOTE, "end"))),
    ];
    const choices = [
      { key: "y", label: "yes, once" },
      ...(scope === null
        ? []
        : [{ key: "a", label: `yes, and in this session do not ask again about ${onOneLine(scope.label)}` }]),
      { key: "n", label: "no" },
    ];
    const answer = await this.#window.ask({ lines, choices });
    if (answer === null) return null;
    return answer === "y" ? "once" : answer === "a" ? "session" : "no";
  }
}

type UserInputHandler = NonNullable<SessionConfig["onUserInputRequest"]>;
type ElicitationHandler = NonNullable<SessionConfig["onElicitationRequest"]>;
type Form = NonNullable<Parameters<ElicitationHandler>[0]["requestedSchema"]>;
type Field = Form["properties"][string];
type Value = string | number | boolean | string[];

/** Puts the agent's questions to the user. */
export class Questions {
  readonly #window: Pick<Window, "ask" | "turn">;

  constructor(window: Pick<Window, "ask" | "turn">) {
    this.#window = window;
  }

  readonly onUserInput: UserInputHandler = async ({ question, choices = [], allowFreeform = true }) => {
    await this.#ownQuestion();
    for (;;) {
      const hint = choices.length === 0 ? [] : [allowFreeform ? "A number or your own answer:" : "A number:"];
      const answer = await this.#ask([question], [...numbered(choices), ...hint]);
      if (answer === null) throw new Error("The user did not answer.");
      const chosen = choices[Number(answer) - 1] ?? choices.find((choice) => choice === answer);
      if (chosen !== undefined) return { answer: chosen, wasFreeform: false };
      if (allowFreeform && answer !== "") return { answer, wasFreeform: true };
    }
  };

  readonly onElicitation: ElicitationHandler = async ({ message, requestedSchema, mode, url, elicitationSource }) => {
    await this.#ownQuestion();
    const source = elicitationSource === undefined ? [] : [`${elicitationSource} asks:`];
    if (mode === "url") {
      const lines = [...source, message, `Open this address in your browser: ${url ?? ""}`];
      return { action: await this.#confirm(lines, "done") };
    }
    const fields = Object.entries(requestedSchema?.properties ?? {});
    if (fields.length === 0) return { action: await this.#confirm([...source, message], "yes") };
    const content: Record<string, Value> = {};
    for (const [name, field] of fields) {
      const isRequired = requestedSchema?.required?.includes(name) ?? false;
      const value = await this.#field([...source, message], name, field, isRequired);
      if (value === null) return { action: "cancel" };
      if (value !== undefined) content[name] = value;
    }
    return { action: "accept", content };
  };

  /**
   * Resolves if the question belongs to a turn of this chat. Otherwise, never settles, because the SDK would send any
   * result or error as the answer. The client that runs the turn has to answer.
   */
  async #ownQuestion(): Promise<void> {
    if ((await this.#window.turn?.asks()) !== true) await new Promise<never>(() => undefined);
  }

  async #confirm(lines: readonly string[], yes: string): Promise<"accept" | "decline" | "cancel"> {
    const choices = [
      { key: "y", label: yes },
      { key: "n", label: "no" },
    ];
    const answer = await this.#window.ask({ lines: lines.map((line) => printableLines(line)), choices });
    return answer === "y" ? "accept" : answer === null ? "cancel" : "decline";
  }

  /**
   * Asks for the value of a form field until the field allows the answer. Resolves with undefined if the user leaves an
   * optional field empty, and with null if the question ends without an answer.
   */
  async #field(intro: string[], name: string, field: Field, isRequired: boolean): Promise<Value | null | undefined> {
    const options = optionsOf(field);
    const title = `${field.title ?? name}${isRequired ? "" : " (optional)"}:`;
    const about = [...(field.description === undefined ? [] : [field.description]), ...defaultOf(field, options)];
    for (let problem: string[] = []; ; ) {
      const answer = await this.#ask(intro, [
        title,
        ...about,
        ...numbered(options.map(({ title }) => title)),
        ...problem,
      ]);
      if (answer === null) return null;
      if (answer === "" && field.default !== undefined) return field.default;
      if (answer === "" && !isRequired) return undefined;
      const value = parsed(answer, field, options);
      if (value !== null) return value;
      problem = [allowedIn(field)];
    }
  }

  async #ask(intro: readonly string[], rest: readonly string[]): Promise<string | null> {
    const lines = [...intro.map((text) => colour.bold(printableLines(text))), ...rest.map(printableLines)];
    const answer = await this.#window.ask({ lines, choices: null });
    return answer === null ? null : answer.trim();
  }
}

interface Option {
  value: string;
  title: string;
}

function numbered(choices: readonly string[]): string[] {
  return choices.map((choice, index) => `${index + 1}. ${choice}`);
}

function optionsOf(field: Field): Option[] {
  const source = field.type === "array" ? field.items : field;
  if ("enum" in source) {
    const titles = "enumNames" in source && Array.isArray(source.enumNames) ? source.enumNames.map(String) : [];
    return source.enum.map((value, index) => ({ value, title: titles[index] ?? value }));
  }
  const titled = "oneOf" in source ? source.oneOf : "anyOf" in source ? source.anyOf : [];
  return titled.map(({ const: value, title }) => ({ value, title }));
}

/** Returns a line that explains which default value an empty answer means; no line if the field has no default. */
function defaultOf({ default: value }: Field, options: readonly Option[]): string[] {
  if (value === undefined) return [];
  const titles = [value].flat().map((each) => options.find((option) => option.value === each)?.title ?? String(each));
  return [`An empty answer means: ${titles.join(", ")}`];
}

/** Converts the user's answer to a value of the field; null if the field does not allow the answer. */
function parsed(answer: string, field: Field, options: readonly Option[]): Value | null {
  const pick = (text: string) => options[Number(text) - 1]?.value ?? options.find(({ value }) => value === text)?.value;
  switch (field.type) {
    case "boolean":
      return /^(?:y|yes|true)$/i.test(answer) ? true : /^(?:n|no|false)$/i.test(answer) ? false : null;
    case "number":
    case "integer": {
      const number = Number(answer);
      const { minimum = Number.NEGATIVE_INFINITY, maximum = Number.POSITIVE_INFINITY } = field;
      const isNumber = field.type === "integer" ? Number.isInteger(number) : Number.isFinite(number);
      return answer !== "" && isNumber && number >= minimum && number <= maximum ? number : null;
    }
    case "array": {
      const values = answer.split(/[\s,]+/).map(pick);
      const { minItems = 0, maxItems = Number.POSITIVE_INFINITY } = field;
      if (values.length < minItems || values.length > maxItems) return null;
      return values.every((value) => value !== undefined) ? values : null;
    }
    default: {
      if (options.length > 0) return pick(answer) ?? null;
      const { minLength = 0, maxLength = Number.POSITIVE_INFINITY } =
        "minLength" in field || "maxLength" in field ? field : {};
      return answer.length >= minLength && answer.length <= maxLength ? answer : null;
    }
  }
}

function allowedIn(field: Field): string {
  switch (field.type) {
    case "boolean":
      return "Answer yes or no.";
    case "number":
    case "integer":
      return `Give a ${field.type === "integer" ? "whole number" : "number"}${within(field.minimum, field.maximum)}.`;
    case "array":
      return `Give the numbers of your choices${within(field.minItems, field.maxItems)}, such as 1, 3.`;
    default:
      return optionsOf(field).length > 0 ? "Give the number of a choice." : "This answer is too short or too long.";
  }
}

function within(min: number | undefined, max: number | undefined): string {
  const bounds = [min === undefined ? "" : `at least ${min}`, max === undefined ? "" : `at most ${max}`];
  const given = bounds.filter((bound) => bound !== "");
  return given.length === 0 ? "" : `, ${given.join(" and ")}`;
}

export type PermissionRequest = Parameters<PermissionHandler>[0];

/** A permission request in words for the user. */
interface Described {
  question: string;
  /** The text that the user should read before the answer, such as the command. */
  body: string;
  /** Reasons and warnings. */
  notes: string[];
  /** The requests that a "yes" for the rest of the session covers; null if the user must answer each request. */
  scope: Scope | null;
}

interface Scope {
  /** The chat does not ask about a request if the user has already allowed all of its keys. */
  keys: string[];
  label: string;
}

export function describe(request: PermissionRequest): Described {
  const described = describeKind(request);
  const bypass = "requestSandboxBypass" in request && request.requestSandboxBypass === true;
  const managed = request.managedApprovalRequired === true;
  const reason = "requestSandboxBypassReason" in request ? request.requestSandboxBypassReason : undefined;
  const notes = bypass ? [`It asks to act outside of the sandbox. ${reason ?? ""}`.trim()] : [];
  return {
    ...described,
    notes: [...notes, ...described.notes].filter((note) => note !== ""),
    scope: bypass || managed ? null : described.scope,
  };
}

function describeKind(request: PermissionRequest): Described {
  switch (request.kind) {
    case "shell": {
      const { fullCommandText: body, intention, warning = "" } = request;
      return { question: "Run this command?", body, notes: [warning, intention], scope: scopeOfShell(request) };
    }
    case "write": {
      const { fileName, intention, diff, newFileContents, canOfferSessionApproval } = request;
      const body = diff === "" ? (newFileContents ?? "") : diff;
      const scope = canOfferSessionApproval ? { keys: ["write"], label: "changes of files" } : null;
      return { question: `Write to the file ${fileName}?`, body, notes: [intention], scope };
    }
    case "read": {
      const { path, intention } = request;
      return {
        question: `Read ${path}?`,
        body: "",
        notes: [intention],
        scope: scopeOfRead(path),
      };
    }
    case "mcp": {
      const { serverName, toolName, args } = request;
      const name = `${serverName}/${toolName}`;
      return { question: `Call the tool ${name}?`, body: asText(args), notes: [], scope: scopeOf("mcp", name) };
    }
    case "custom-tool": {
      const { toolName, args } = request;
      return {
        question: `Call the tool ${toolName}?`,
        body: asText(args),
        notes: [],
        scope: scopeOf("tool", toolName),
      };
    }
    case "url": {
      const { url, intention, redirectedFrom } = request;
      const from = redirectedFrom === undefined ? "" : `Redirected from ${redirectedFrom}`;
      const host = URL.canParse(url) ? new URL(url).host : url;
      return { question: "Fetch this address?", body: url, notes: [intention, from], scope: scopeOf("url", host) };
    }
    case "memory":
      return { question: "Remember this?", body: request.fact, notes: [request.reason ?? ""], scope: null };
    case "hook": {
      const { toolName, toolArgs, hookMessage = "" } = request;
      return { question: `Call the tool ${toolName}?`, body: asText(toolArgs), notes: [hookMessage], scope: null };
    }
    default:
      return { question: "Allow this?", body: asText(request), notes: [], scope: null };
  }
}

type Shell = Extract<PermissionRequest, { kind: "shell" }>;

/**
 * Returns what a "yes" for the rest of the session covers: all commands that run the same programs. If the runtime does
 * not offer this for the command, or if the command redirects output to a file, it covers exactly this command.
 */
function scopeOfShell(request: Shell): Scope {
  const { canOfferSessionApproval, commands, fullCommandText, hasWriteFileRedirection } = request;
  if (!canOfferSessionApproval || hasWriteFileRedirection || commands.length === 0) {
    return { keys: [`command ${fullCommandText}`], label: "exactly this command" };
  }
  const names = [...new Set(commands.map(({ identifier }) => identifier))];
  return { keys: names.map((name) => `program ${name}`), label: `commands of: ${names.join(", ")}` };
}

function scopeOfRead(path: string): Scope {
  const folder = dirname(normalize(path));
  return { keys: [`read ${folder}`], label: `reading files directly in ${folder}` };
}

function scopeOf(kind: string, name: string): Scope {
  return { keys: [`${kind} ${name}`], label: name };
}

function asText(value: unknown): string {
  if (value === undefined) return "";
  return typeof value === "string" ? value : JSON.stringify(value, null, 2);
}
