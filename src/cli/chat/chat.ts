import { setImmediate as yieldToOthers } from "node:timers/promises";
import type { SessionEvent } from "@github/copilot-sdk";
import { deadline, either } from "../../base/clock.js";
import { isFleetError, quote } from "../../base/errors.js";
import { meantIds } from "../../base/ids.js";
import { nearestOf } from "../../base/values/names.js";
import { countOf, printableLines } from "../../base/values/text.js";
import type { Fleet } from "../../fleet/fleet.js";
import type { TranscriptEntry } from "../../runtime/history/transcript.js";
import type { LeaseWait } from "../../sessions/leases.js";
import type { Door } from "../flags/door.js";
import { given } from "../flags/flags.js";
import { Interrupted } from "../prompt.js";
import { colour } from "../render/colour.js";
import { wrap } from "../render/layout.js";
import { renderSince, renderUntil } from "../render/table.js";
import { inChat } from "../report.js";
import { OwnTurn, Questions } from "./answers.js";
import { InputHistory } from "./input-history.js";
import { MarkdownStream } from "./markdown.js";
import { type Backend, ChatSession, DoorBackend, FleetBackend } from "./session.js";
import { callRow, TurnView } from "./turn-view.js";
import { Cancelled, Window, Work } from "./window.js";

interface ChatRequest {
  /** Null for a new session. */
  sessionId: string | null;
  model?: string | undefined;
  /** The title of a new session. */
  title?: string | undefined;
  /** Ends the chat. */
  signal: AbortSignal;
}

/**
 * Runs a chat until the person ends it: at a front door, or as a user of this fleet.
 *
 * @throws the signal's reason if the signal ends it
 */
export async function chat(fleet: Fleet, as: { user: string } | { door: Door }, request: ChatRequest): Promise<void> {
  const { sessionId, model, title, signal } = request;
  const flags = "door" in as ? as.door.flags : `--user ${as.user}`;
  // Only the front door knows the token's user, so its prompts belong to its address. The spaces rule out a user's id.
  const owner = "door" in as ? `front door ${as.door.address.host}:${as.door.address.port}` : as.user;
  const history = new InputHistory(fleet.stateRoot, owner);
  const markdown = await MarkdownStream.create();
  {
    using window = new Window(history.load(), signal);
    const questions = new Questions(window);
    await using backend =
      "door" in as ? new DoorBackend(as.door, questions) : new FleetBackend(fleet, as.user, questions, title);
    const resumeWith = (id: string) => `copilotfleet chat ${id} ${flags}`;
    await Chat.run({ window, questions, backend, fleet, history, markdown, signal, resumeWith }, sessionId, model);
  }
  signal.throwIfAborted();
}

export interface ChatParts {
  window: Window;
  questions: Pick<Questions, "turn">;
  backend: Backend;
  fleet: Pick<Fleet, "takeWarnings">;
  history: Pick<InputHistory, "add">;
  markdown: MarkdownStream;
  /** Ends the chat. */
  signal: AbortSignal;
  /** Returns the command that continues a session. */
  resumeWith: (id: string) => string;
}

const OPENING = "Opening the session";
/** How many sessions `/resume` lists. */
const MOST_SESSIONS = 20;
/** How long checking and deleting an unused session may take, in milliseconds. */
const LEAVE_MS = 10_000;
/** How many turns a resumed chat shows. */
const LAST_TURNS = 3;

/** Reads prompts and commands until the user ends the chat. A failed turn does not end it. */
export class Chat {
  readonly #parts: ChatParts;
  /** The requests and tokens of this chat's turns by model, as the model service reported them. */
  readonly #usage = new Map<string, { requests: number; input: number; output: number; cached: number }>();
  #session: ChatSession;
  /** Whether this chat created the session and has not tried to send a prompt to it. */
  #isUnused: boolean;
  #model: string | null = null;

  private constructor(parts: ChatParts, session: ChatSession, isUnused: boolean) {
    this.#parts = parts;
    this.#session = session;
    this.#isUnused = isUnused;
  }

  static async run(parts: ChatParts, id: string | null, model: string | undefined): Promise<void> {
    const opened = await open(parts, id, model).catch((error: unknown) => {
      if (!(error instanceof Cancelled)) throw error;
      // The user cancelled the opening. Without an open session, the chat cannot go on, so end it.
      const interrupted = new Interrupted("SIGINT");
      if (id === null) interrupted.note = "Interrupted: no session was created.";
      throw interrupted;
    });
    const chat = new Chat(parts, opened, id === null);
    try {
      await chat.#begin();
      parts.window.print([""]);
      await chat.#loop();
    } finally {
      await chat.#leave();
    }
  }

  async #loop(): Promise<void> {
    const { window, signal, fleet } = this.#parts;
    for (let text = await this.#next(); text !== null; text = await this.#next()) {
      this.#remember(text);
      const entered = parseEntered(text);
      try {
        if (entered.kind === "prompt") await this.#turn(entered.text);
        else if (entered.kind === "unknown") throw new Error(entered.message);
        else if (entered.name === "exit") return;
        else await this.#command(entered.name, entered.argument);
      } catch (error) {
        if (signal.aborted) return;
        this.#report(error);
        // Do not send waiting prompts. They may be meant for the session or model that the command failed to choose.
        if (entered.kind !== "prompt") window.giveBack();
      }
      for (const warning of fleet.takeWarnings()) window.say(`Warning: ${warning}`, colour.yellow);
      window.print([""]);
      if (signal.aborted) return;
    }
  }

  /** Shows the model, the place and the session above the prompt, and waits for the user's next prompt. */
  async #next(): Promise<string | null> {
    const { window, backend } = this.#parts;
    const view = await backend.view(this.#session.id).catch(() => null);
    const place = view === null ? backend.place : `server ${view.serverId}`;
    window.status = [...this.#modelPart(), place, `session ${this.#session.id}`].join(" · ");
    return await window.next();
  }

  #modelPart(): string[] {
    const model = this.#parts.backend.isEcho ? "echo" : this.#model;
    return model === null ? [] : [`model ${model}`];
  }

  async #turn(prompt: string): Promise<void> {
    const { window, markdown, signal, questions } = this.#parts;
    const view = new TurnView(window, markdown);
    const turn = new OwnTurn();
    // Do not delete the session as unused, because it may contain the prompt even if sending fails.
    this.#isUnused = false;
    questions.turn = turn;
    try {
      await window.during(view, "The turn was cancelled.", async (cancelled) => {
        using stop = either(signal, cancelled);
        const onEvent = (event: SessionEvent) => {
          turn.hasBegun = true;
          if (event.type === "assistant.usage") this.#count(event.data);
          if (event.type === "tool.execution_complete") {
            turn.decided.delete(event.data.toolCallId);
            // After a cancellation, the runtime may report a tool call that still waits for the user's permission
            // as refused. Do not show this, because nobody refused the call.
            if (cancelled.aborted && !event.data.success) return;
          }
          if (!("agentId" in event) || event.agentId === undefined) view.push(event);
        };
        const onWait = (wait: LeaseWait) => {
          view.reason = wait;
        };
        try {
          await this.#session.send(prompt, { signal: stop.signal, onEvent, onWait });
        } finally {
          await view.finish();
        }
      });
    } catch (error) {
      // Nothing shows that the prompt reached the session, so put it back into the input. The user may send it again.
      if (!turn.hasBegun) window.giveBack(prompt);
      throw error;
    } finally {
      questions.turn = null;
    }
  }

  #count(data: Extract<SessionEvent, { type: "assistant.usage" }>["data"]): void {
    const { model, inputTokens = 0, outputTokens = 0, cacheReadTokens = 0 } = data;
    const sum = this.#usage.get(model) ?? { requests: 0, input: 0, output: 0, cached: 0 };
    this.#usage.set(model, {
      requests: sum.requests + 1,
      input: sum.input + inputTokens,
      output: sum.output + outputTokens,
      cached: sum.cached + cacheReadTokens,
    });
  }

  async #command(name: string, argument: string): Promise<void> {
    const { window } = this.#parts;
    switch (name) {
      case "help":
        for (const [key, purpose] of [...COMMANDS, ...KEYS])
          window.print(wrap(purpose, window.columns, " ".repeat(14), colour.bold(key.padEnd(14))));
        return;
      case "new":
        return await this.#switch(await open(this.#parts, null, undefined), true);
      case "resume":
        return await this.#resume(argument);
      case "model":
        return await this.#chooseModel(argument);
      case "history": {
        const read = async (signal: AbortSignal) => await this.#show(await this.#session.past(signal), signal);
        return await work(this.#parts, "Reading the history", read);
      }
      case "usage":
        if (this.#usage.size === 0) window.say("Nothing yet.");
        for (const [model, { requests, input, output, cached }] of this.#usage) {
          const tokens = `${input} input tokens (${cached} of them from the cache), ${output} output tokens`;
          window.say(`${model}: ${countOf(requests, "request")}, ${tokens}`);
        }
    }
  }

  async #resume(argument: string): Promise<void> {
    const { window, backend } = this.#parts;
    const list = async (signal: AbortSignal) => await backend.list(signal);
    const sessions = await work(this.#parts, "Listing the sessions", list);
    if (argument === "") {
      for (const { id, title, lastUsedAt } of sessions.slice(0, MOST_SESSIONS)) {
        const name = title === null ? id : `${printableLines(title)}  ${id}`;
        window.say(`${id === this.#session.id ? "*" : " "} ${name}  used ${renderSince(lastUsedAt)} ago`);
      }
      if (sessions.length > MOST_SESSIONS) window.say(`… and ${sessions.length - MOST_SESSIONS} more`);
      return window.say("/resume ID continues one. The beginning of an ID is enough.", colour.dim);
    }
    // If no session matches, take the argument as an id. If no such session exists, opening it reports it.
    const ids = sessions.map((session) => session.id);
    const [id = argument, ...others] = meantIds(argument, ids);
    if (others.length > 0)
      throw new Error(`Several sessions begin with ${quote(argument)}: ${[id, ...others].join(", ")}.`);
    if (id === this.#session.id) return window.say("This session is already open.");
    await this.#switch(await open(this.#parts, id, undefined), false);
  }

  /** Leaves the present session and continues in `next`, which is already open. */
  async #switch(next: ChatSession, isUnused: boolean): Promise<void> {
    await this.#leave().catch((error: unknown) => this.#report(error));
    this.#session = next;
    this.#isUnused = isUnused;
    await this.#begin();
  }

  /** Leaves the session, and deletes it if it is unused and has no turn. The chat's signal does not interrupt this. */
  async #leave(): Promise<void> {
    const { window, backend, resumeWith } = this.#parts;
    const session = this.#session;
    const leave = async (cancelled: AbortSignal) => {
      using limit = deadline(LEAVE_MS, cancelled);
      // Read the history, because another client may have used the session. If that fails, keep the session.
      const turns = this.#isUnused ? await session.past(limit.signal, 1).catch(() => null) : null;
      await session.leave();
      if (turns === null || turns.length > 0) return false;
      try {
        await backend.delete(session.id, limit.signal);
        return true;
      } catch (error) {
        if (limit.signal.aborted) return false;
        throw error;
      }
    };
    const isDeleted = await window.during(new Work("Leaving the session"), CANCELLED, leave);
    if (isDeleted) window.say("The session had no prompt, so it is deleted.", colour.dim);
    else window.sayCommand(`Continue this session: ${resumeWith(session.id)}`);
  }

  async #begin(): Promise<void> {
    const { window, backend } = this.#parts;
    const session = this.#session;
    try {
      await work(this.#parts, "Reading the session", async (signal) => {
        this.#model = await session.model(signal).catch(() => null);
        window.say([backend.place, ...this.#modelPart(), `session ${session.id}`].join(" · "), colour.bold);
        window.say("/help lists the commands. Ctrl-C cancels a turn. Ctrl-D ends the chat.", colour.dim);
        const view = await backend.view(session.id).catch(() => null);
        if (view?.title != null) window.say(printableLines(view.title));
        const expiry = renderUntil(view?.expiresAt ?? null);
        if (expiry !== null)
          window.say(`If nobody uses this session, it expires ${expiry === "due" ? "soon" : expiry}.`, colour.dim);
        if (!this.#isUnused) await this.#showLastTurns(signal);
      });
    } catch (error) {
      if (!(error instanceof Cancelled)) throw error;
      window.say("The history was left out.", colour.yellow);
    }
  }

  async #showLastTurns(signal: AbortSignal): Promise<void> {
    const { window } = this.#parts;
    const entries = await this.#session.past(signal, LAST_TURNS);
    if (entries.length === 0) return;
    window.print([""]);
    const hidden = (entries[0]?.turn ?? 1) - 1;
    if (hidden > 0) window.say(`${countOf(hidden, "earlier turn")}: /history shows everything.`, colour.dim);
    await this.#show(entries, signal);
  }

  async #show(entries: readonly TranscriptEntry[], signal: AbortSignal): Promise<void> {
    const { window, markdown } = this.#parts;
    if (entries.length === 0) window.say("The session has no turns.");
    for (const [index, { role, text, attachments, failure }] of entries.entries()) {
      if (role === "tool" ? entries[index - 1]?.role !== "tool" : failure === null && index > 0) window.print([""]);
      if (role === "user") {
        window.printPrompt(text);
        if (attachments.length > 0) window.say(`  attached: ${attachments.join(", ")}`, colour.dim);
      } else if (role === "tool") {
        window.print([callRow(text, window.columns)]);
      } else if (failure !== null) window.say(failure, colour.yellow);
      else {
        markdown.add(text);
        for (let rows = markdown.next(window.columns); rows !== null; rows = markdown.next(window.columns)) {
          if (signal.aborted) break;
          window.print(rows);
          await yieldToOthers();
        }
        const rest = markdown.end(window.columns);
        signal.throwIfAborted();
        window.print(rest);
      }
    }
  }

  /** Changes the model to `wanted` unless that is empty, and shows it. */
  async #chooseModel(wanted: string): Promise<void> {
    const { window, backend } = this.#parts;
    const session = this.#session;
    const what = wanted === "" ? "Asking for the models" : "Changing the model";
    const offered = await work(this.#parts, what, async (signal) => {
      const models = await session.models(signal).catch((error: unknown): string[] => {
        // Without a list, the server decides whether it accepts the model.
        if (signal.aborted || wanted === "") throw error;
        return [];
      });
      if (wanted !== "" && models.length > 0 && !models.includes(wanted)) {
        const [nearest] = nearestOf(wanted, models, (each) => each);
        const meant = nearest === undefined ? "" : ` Did you mean ${nearest}?`;
        throw new Error(`The provider does not offer the model ${quote(wanted)}.${meant} /model lists what it offers.`);
      }
      if (wanted !== "") await session.useModel(wanted, signal);
      this.#model = await session.model(signal);
      return models;
    });
    window.say(`The model is ${this.#model ?? "the provider's default"}.`);
    if (backend.isEcho) window.say("The echo model answers in its place.", colour.dim);
    if (wanted === "" && offered.length > 0) window.say(`The provider offers: ${offered.join(", ")}.`);
  }

  /** Shows an error of any class. The server, the front door and the SDK also throw errors that are not FleetErrors. */
  #report(error: unknown): void {
    const { window, backend } = this.#parts;
    const { message, advice } = isFleetError(error)
      ? inChat(error, { SESSION: this.#session.id, ...given({ USER: backend.user }) })
      : { message: error instanceof Error ? error.message : String(error), advice: [] };
    window.say(message, colour.yellow);
    for (const line of advice) window.sayCommand(line);
  }

  #remember(text: string): void {
    try {
      this.#parts.history.add(text);
    } catch {
      // Ignore the failure, because the history is only a convenience. A full disk causes other errors, too.
    }
  }
}

const CANCELLED = "The command was cancelled.";

/** Runs an operation other than a turn, and shows it. @throws Cancelled if the user cancels it; the signal's reason */
async function work<T>(
  { window, signal }: Pick<ChatParts, "window" | "signal">,
  what: string,
  run: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  return await window.during(new Work(what), CANCELLED, async (cancelled) => {
    using stop = either(signal, cancelled);
    try {
      stop.signal.throwIfAborted();
      return await run(stop.signal);
    } catch (error) {
      // A cancelled operation may fail with any error, so throw the reason of the cancellation instead.
      throw stop.signal.aborted ? stop.signal.reason : error;
    }
  });
}

async function open(parts: ChatParts, id: string | null, model: string | undefined): Promise<ChatSession> {
  return await work(parts, OPENING, async (signal) => await ChatSession.open(parts.backend, id, model, signal));
}

/** The commands of the chat, as `/help` lists them. */
const COMMANDS = [
  ["/help", "shows the commands and the keys"],
  ["/new", "begins a new session"],
  ["/resume [ID]", "lists your sessions, or continues one"],
  ["/model [NAME]", "shows the model, or changes it for this session"],
  ["/history", "shows the whole conversation, with its tool calls"],
  ["/usage", "shows the tokens that this chat has used"],
  ["/exit", "ends the chat"],
] as const;

const KEYS = [
  ["Enter", "sends the prompt"],
  ["Alt-Enter", "begins a new line, as does a \\ before Enter"],
  ["Up, Down", "show earlier and later prompts"],
  ["Ctrl-C", "cancels what runs, or clears the prompt; twice at an empty prompt, ends the chat"],
  ["Ctrl-D", "ends the chat at an empty prompt"],
  ["//text", "sends a prompt that begins with a slash"],
] as const;

const NAMES = COMMANDS.map(([usage]) => /\w+/.exec(usage)?.[0] ?? "");

type Entered =
  | { kind: "prompt"; text: string }
  | { kind: "command"; name: string; argument: string }
  | { kind: "unknown"; message: string };

/** Tells commands from prompts: a single line that begins with `/` is a command. `//text` is the prompt `/text`. */
export function parseEntered(text: string): Entered {
  const trimmed = text.trim();
  if (trimmed.includes("\n")) return { kind: "prompt", text };
  if (trimmed.startsWith("//")) return { kind: "prompt", text: trimmed.slice(1) };
  // Users type `exit` to leave a shell, and nobody sends this word to a model on purpose.
  if (trimmed === "exit" || trimmed === "/quit") return { kind: "command", name: "exit", argument: "" };
  if (!trimmed.startsWith("/")) return { kind: "prompt", text };
  const [, word = "", argument = ""] = /^\/(\S*)\s*(.*)$/s.exec(trimmed) ?? [];
  const name = NAMES.find((each) => each === word);
  if (name !== undefined) return { kind: "command", name, argument };
  const [nearest] = nearestOf(word, NAMES, (each) => each);
  const meant = nearest === undefined ? "" : ` Did you mean /${nearest}?`;
  const message = `There is no command /${word}.${meant} /help lists all. To send this as a prompt, write //.`;
  return { kind: "unknown", message };
}
