import { setImmediate as yieldToOthers } from "node:timers/promises";
import type { SessionEvent } from "@github/copilot-sdk";
import { deadline, either } from "../../base/clock.js";
import { isFleetError, quote } from "../../base/errors.js";
import { meantIds } from "../../base/ids.js";
import { nearestOf } from "../../base/values/names.js";
import { printableLines } from "../../base/values/text.js";
import type { TranscriptEntry } from "../../runtime/history/transcript.js";
import { given } from "../flags/flags.js";
import { Interrupted } from "../prompt.js";
import { colour } from "../render/colour.js";
import { renderAge, renderUntil, shorten } from "../render/table.js";
import { inChat } from "../report.js";
import type { Backend } from "./backends.js";
import type { InputHistory } from "./input-history.js";
import { onOneLine, wrap } from "./layout.js";
import type { MarkdownStream } from "./markdown.js";
import { ChatSession } from "./session.js";
import { SignOfLife, TurnView } from "./turn-view.js";
import { Cancelled, type LivePart, type Window } from "./window.js";

interface Sum {
  requests: number;
  input: number;
  output: number;
  cached: number;
}

/** Counts the model requests and tokens of this chat's turns, as the model service reported them. */
class ChatUsage {
  readonly #models = new Map<string, Sum>();

  push(event: SessionEvent): void {
    if (event.type !== "assistant.usage") return;
    const { model, inputTokens = 0, outputTokens = 0, cacheReadTokens = 0 } = event.data;
    const { requests, input, output, cached } = this.#models.get(model) ?? {
      requests: 0,
      input: 0,
      output: 0,
      cached: 0,
    };
    this.#models.set(model, {
      requests: requests + 1,
      input: input + inputTokens,
      output: output + outputTokens,
      cached: cached + cacheReadTokens,
    });
  }

  /** One row for each model. */
  rows(): string[] {
    if (this.#models.size === 0) return ["Nothing yet."];
    return [...this.#models].map(([model, { requests, input, output, cached }]) => {
      const calls = requests === 1 ? "1 request" : `${requests} requests`;
      return `${model}: ${calls}, ${input} input tokens (${cached} of them from the cache), ${output} output tokens`;
    });
  }
}

const MOST_SESSIONS = 20;
const OPENING = "Opening the session";

export interface ChatParts extends Workplace {
  backend: Backend;
  history: InputHistory;
  markdown: MarkdownStream;
  /** Returns the command that continues a session. */
  resumeWith: (id: string) => string;
}

/** A chat on a terminal: reads prompts and commands until the user ends the chat. A failed turn does not end it. */
export class Chat {
  readonly #parts: ChatParts;
  readonly #usage = new ChatUsage();
  #conversation: ChatSession;
  /** Whether this chat created the session and has not tried to send a prompt to it. */
  #isUnused: boolean;
  #modelName: string | null = null;
  #lastTurn: TurnView | null = null;

  private constructor(parts: ChatParts, conversation: ChatSession, isUnused: boolean) {
    this.#parts = parts;
    this.#conversation = conversation;
    this.#isUnused = isUnused;
  }

  static async run(parts: ChatParts, sessionId: string | null, model: string | undefined): Promise<void> {
    const { backend } = parts;
    const open = async (signal: AbortSignal) => await ChatSession.open(backend, sessionId, model, signal);
    const opening = work(parts, OPENING, open);
    const opened = await opening.catch((error: unknown) => {
      if (!(error instanceof Cancelled)) throw error;
      // The user cancelled the opening. Without an open session, the chat cannot go on, so end it.
      const interrupted = new Interrupted("SIGINT");
      if (sessionId === null) interrupted.note = "Interrupted: no session was created.";
      throw interrupted;
    });
    const chat = new Chat(parts, opened, sessionId === null);
    try {
      await chat.#begin();
      parts.window.print([""]);
      await chat.#loop();
    } finally {
      await chat.#leave();
    }
  }

  async #loop(): Promise<void> {
    const { window } = this.#parts;
    for (let text = await this.#next(); text !== null; text = await this.#next()) {
      this.#remember(text);
      const entered = parseEntered(text);
      try {
        if (entered.kind === "prompt") await this.#turn(entered.text);
        else if (entered.kind === "command") {
          if (entered.name === "exit") return;
          await this.#command(entered.name, entered.argument);
        } else {
          const meant = entered.nearest === undefined ? "" : ` Did you mean /${entered.nearest}?`;
          throw new Error(
            `There is no command /${entered.word}.${meant} /help lists all. To send this as a prompt, write //.`,
          );
        }
      } catch (error) {
        if (this.#parts.signal.aborted) return;
        this.#report(error);
        // Do not send waiting prompts. They may be meant for the session or model that the command failed to choose.
        if (entered.kind !== "prompt") window.giveBack();
      }
      for (const warning of this.#parts.backend.takeWarnings()) window.say(`Warning: ${warning}`, colour.yellow);
      window.print([""]);
      if (this.#parts.signal.aborted) return;
    }
  }

  /** Shows the model, the place and the session above the prompt, and waits for the user's next prompt. */
  async #next(): Promise<string | null> {
    const { window, backend } = this.#parts;
    const view = await this.#conversation.view().catch(() => null);
    const place = view === null ? backend.place : `server ${view.serverId}`;
    window.status = [...this.#modelPart(), place, this.#sessionPart()].join(" · ");
    return await window.next();
  }

  async #turn(prompt: string): Promise<void> {
    const { window, markdown, signal } = this.#parts;
    const view = new TurnView(window, markdown);
    this.#lastTurn = view;
    let hasBegun = false;
    // Do not delete the session as unused, because it may contain the prompt even if sending fails.
    this.#isUnused = false;
    try {
      await window.during(view, async (turn) => {
        using stop = either(signal, turn.signal);
        try {
          await this.#conversation.send(prompt, {
            signal: stop.signal,
            onEvent: (event) => {
              hasBegun = true;
              turn.begin();
              this.#usage.push(event);
              if (event.type === "tool.execution_complete") {
                turn.endCall(event.data.toolCallId);
                // After a cancellation, the runtime may report a tool call that still waits for the user's permission
                // as refused. Do not show this, because nobody refused the call.
                if (turn.signal.aborted && !event.data.success) return;
              }
              if (!("agentId" in event) || event.agentId === undefined) view.push(event);
            },
            onWait: (wait) => view.report(wait),
            onLost: () => view.report("the connection ended, and is made again"),
            onFound: () => {
              hasBegun = true;
              turn.find();
            },
          });
        } finally {
          await view.finish();
        }
      });
    } catch (error) {
      // Nothing shows that the prompt reached the session, so put it back into the input. The user may send it again.
      if (!hasBegun) window.giveBack(prompt);
      throw error;
    }
  }

  async #command(name: Exclude<CommandName, "exit">, argument: string): Promise<void> {
    const { window, markdown, backend } = this.#parts;
    switch (name) {
      case "help":
        return this.#help();
      case "new":
        return await this.#switch(
          await work(this.#parts, OPENING, async (signal) => await ChatSession.open(backend, null, undefined, signal)),
          true,
        );
      case "resume":
        return await this.#resume(argument);
      case "model":
        this.#modelName = await chooseModel(this.#parts, this.#conversation, argument);
        return;
      case "history":
        return await work(this.#parts, "Reading the history", async (signal) => {
          await showHistory(window, markdown, { conversation: this.#conversation, signal });
        });
      case "tools": {
        const calls = this.#lastTurn?.calls ?? [];
        if (calls.length === 0) window.say("The last turn called no tool.");
        for (const call of calls) window.print(call.details(window.columns));
        return;
      }
      case "usage":
        for (const row of this.#usage.rows()) window.say(row);
    }
  }

  #help(): void {
    const { window } = this.#parts;
    const commands = CHAT_COMMANDS.map(({ name, argument, purpose }) => [`/${name} ${argument}`.trim(), purpose]);
    for (const [key = "", purpose = ""] of [...commands, ...KEYS]) {
      window.print(wrap(purpose, window.columns, " ".repeat(14), colour.bold(key.padEnd(14))));
    }
  }

  async #resume(argument: string): Promise<void> {
    const { window, backend } = this.#parts;
    const sessions = await work(this.#parts, "Listing the sessions", async (signal) => await backend.list(signal));
    if (argument === "") {
      for (const { id, title, lastUsedAt } of sessions.slice(0, MOST_SESSIONS)) {
        const age = renderAge(Date.now() - Date.parse(lastUsedAt));
        window.say(
          `${id === this.#conversation.id ? "*" : " "} ${title == null ? id : `${printableLines(title)}  ${id}`}  used ${age} ago`,
        );
      }
      if (sessions.length > MOST_SESSIONS) window.say(`… and ${sessions.length - MOST_SESSIONS} more`);
      return window.say("/resume ID continues one. The beginning of an ID is enough.", colour.dim);
    }
    // If no session matches, take the argument as an id. If no such session exists, resume() reports it.
    const [id = argument, ...others] = meantIds(
      argument,
      sessions.map((session) => session.id),
    );
    if (others.length > 0) {
      throw new Error(`Several sessions begin with ${quote(argument)}: ${[id, ...others].join(", ")}.`);
    }
    if (id === this.#conversation.id) return window.say("This session is already open.");
    const opening = async (signal: AbortSignal) => await ChatSession.open(backend, id, undefined, signal);
    await this.#switch(await work(this.#parts, OPENING, opening), false);
  }

  /** Leaves the present session and continues in `next`, which is already open. */
  async #switch(next: ChatSession, isUnused: boolean): Promise<void> {
    await this.#leave().catch((error: unknown) => this.#report(error));
    this.#conversation = next;
    this.#isUnused = isUnused;
    this.#lastTurn = null;
    await this.#begin();
  }

  async #leave(): Promise<void> {
    await leaveSession(this.#parts, this.#conversation, this.#isUnused);
  }

  async #begin(): Promise<void> {
    const { window, backend, markdown } = this.#parts;
    const conversation = this.#conversation;
    try {
      await work(this.#parts, "Reading the session", async (signal) => {
        this.#modelName = await conversation.model(signal).catch(() => null);
        window.say([backend.place, ...this.#modelPart(), this.#sessionPart()].join(" · "), colour.bold);
        window.say("/help lists the commands. Ctrl-C cancels a turn. Ctrl-D ends the chat.", colour.dim);
        const view = await conversation.view().catch(() => null);
        if (view !== null && view.title !== null) window.say(printableLines(view.title));
        const expiry = renderUntil(view?.expiresAt ?? null);
        if (expiry !== null)
          window.say(`If nobody uses this session, it expires ${expiry === "due" ? "soon" : expiry}.`, colour.dim);
        if (!this.#isUnused) await showLastTurns(window, markdown, { conversation, signal });
      });
    } catch (error) {
      if (!(error instanceof Cancelled)) throw error;
      window.say("The history was left out.", colour.yellow);
    }
  }

  #modelPart(): string[] {
    if (this.#parts.backend.isEcho) return ["model echo"];
    return this.#modelName === null ? [] : [`model ${this.#modelName}`];
  }

  #sessionPart(): string {
    return `session ${this.#conversation.id}`;
  }

  /** Shows an error of any class. The server, the front door and the SDK also throw errors that are not FleetErrors. */
  #report(error: unknown): void {
    const { window, backend } = this.#parts;
    if (!isFleetError(error)) {
      const text = error instanceof Error ? error.message : String(error);
      window.say(text, colour.yellow);
      return;
    }
    const { user } = backend;
    const { message, advice } = inChat(error, { SESSION: this.#conversation.id, ...given({ USER: user }) });
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

/** The commands of the chat, as `/help` lists them. */
const CHAT_COMMANDS = [
  { name: "help", argument: "", purpose: "shows the commands and the keys" },
  { name: "new", argument: "", purpose: "begins a new session" },
  { name: "resume", argument: "[ID]", purpose: "lists your sessions, or continues one" },
  { name: "model", argument: "[NAME]", purpose: "shows the model, or changes it for this session" },
  { name: "history", argument: "", purpose: "shows the whole conversation" },
  { name: "tools", argument: "", purpose: "shows the tool calls of the last turn with their results" },
  { name: "usage", argument: "", purpose: "shows the tokens that this chat has used" },
  { name: "exit", argument: "", purpose: "ends the chat" },
] as const;

type CommandName = (typeof CHAT_COMMANDS)[number]["name"];

const KEYS = [
  ["Enter", "sends the prompt"],
  ["Alt-Enter", "begins a new line, as does a \\ before Enter"],
  ["Up, Down", "show earlier and later prompts"],
  ["Ctrl-C", "cancels what runs, or clears the prompt; twice at an empty prompt, ends the chat"],
  ["Ctrl-D", "ends the chat at an empty prompt"],
  ["//text", "sends a prompt that begins with a slash"],
] as const;

type Entered =
  | { kind: "prompt"; text: string }
  | { kind: "command"; name: CommandName; argument: string }
  | { kind: "unknown"; word: string; nearest: CommandName | undefined };

/** Tells commands from prompts: a single line that begins with `/` is a command. `//text` is the prompt `/text`. */
export function parseEntered(text: string): Entered {
  const trimmed = text.trim();
  if (trimmed.includes("\n")) return { kind: "prompt", text };
  if (trimmed.startsWith("//")) return { kind: "prompt", text: trimmed.slice(1) };
  // Users type `exit` to leave a shell, and nobody sends this word to a model on purpose.
  if (trimmed === "exit") return { kind: "command", name: "exit", argument: "" };
  if (!trimmed.startsWith("/")) return { kind: "prompt", text };
  const [, word = "", argument = ""] = /^\/(\S*)\s*(.*)$/s.exec(trimmed) ?? [];
  const names = CHAT_COMMANDS.map(({ name }) => name);
  const name = names.find((each) => each === word) ?? (word === "quit" ? "exit" : undefined);
  if (name !== undefined) return { kind: "command", name, argument };
  const [nearest] = nearestOf(word, names, (each) => each);
  return { kind: "unknown", word, nearest };
}

/** How long checking and deleting an unused session may take, in milliseconds. */
const LEAVE_MS = 10_000;

/** Leaves the session, and deletes it if it is unused and has no turn. The chat's signal does not interrupt this. */
async function leaveSession(
  { window, backend, resumeWith }: Pick<ChatParts, "window" | "backend" | "resumeWith">,
  conversation: ChatSession,
  isUnused: boolean,
): Promise<void> {
  const { id } = conversation;
  const isDeleted = await window.working(new WorkView("Leaving the session"), async (cancelled) => {
    using limit = deadline(LEAVE_MS, cancelled);
    const isEmpty = isUnused && (await hasNoTurn(conversation, limit.signal));
    await conversation.leave();
    if (!isEmpty) return false;
    try {
      await backend.delete(id, limit.signal);
      return true;
    } catch (error) {
      if (limit.signal.aborted) return false;
      throw error;
    }
  });
  if (isDeleted) window.say("The session had no prompt, so it is deleted.", colour.dim);
  else window.sayCommand(`Continue this session: ${resumeWith(id)}`);
}

/** Whether the session has no turn. Reads the history, because another client may have used the session. */
async function hasNoTurn(conversation: ChatSession, signal: AbortSignal): Promise<boolean> {
  try {
    return (await conversation.past(signal, 1)).length === 0;
  } catch {
    return false; // do not delete a session whose history cannot be read
  }
}

/** The most models that the error about an unknown model lists. */
const MOST_MODELS = 12;

/** Changes the model to `wanted` unless that is empty, and shows it. Resolves with its name; null if it is unknown. */
async function chooseModel(
  place: Workplace & { backend: Backend },
  conversation: ChatSession,
  wanted: string,
): Promise<string | null> {
  const { window, backend } = place;
  const what = wanted === "" ? "Asking for the models" : "Changing the model";
  const { name, offered } = await work(place, what, async (signal) => {
    if (wanted !== "") await change(conversation, wanted, signal);
    const name = await conversation.model(signal);
    return { name, offered: wanted === "" ? await conversation.models(signal) : [] };
  });
  window.say(`The model is ${name ?? "the provider's default"}.`);
  if (backend.isEcho) window.say("The echo model answers in its place.", colour.dim);
  if (offered.length > 0) window.say(`The provider offers: ${offered.join(", ")}.`);
  return name;
}

/** Changes the model. Refuses a model that the provider does not list. If it lists none, the server decides. */
async function change(conversation: ChatSession, wanted: string, signal: AbortSignal): Promise<void> {
  const offered = await conversation.models(signal).catch((error: unknown): string[] => {
    if (signal.aborted) throw error;
    return [];
  });
  if (offered.length > 0 && !offered.includes(wanted)) throw notOffered(wanted, offered);
  await conversation.useModel(wanted, signal);
}

function notOffered(wanted: string, offered: readonly string[]): Error {
  const [nearest] = nearestOf(wanted, offered, (each) => each);
  const meant = nearest === undefined ? "" : ` Did you mean ${nearest}?`;
  const some = offered.slice(0, MOST_MODELS).join(", ");
  const more = offered.length > MOST_MODELS ? ", and more, which /model lists" : "";
  return new Error(`The provider does not offer the model ${quote(wanted)}.${meant} It offers: ${some}${more}.`);
}

/** How many turns a resumed chat shows, and how much of each text, in characters. */
const LAST_TURNS = 3;
const LONGEST = 4_000;

interface Shown {
  conversation: ChatSession;
  /** Aborts the reading and the rendering. */
  signal: AbortSignal;
}

/** Shows the last turns of a resumed session. */
async function showLastTurns(window: Window, markdown: MarkdownStream, { conversation, signal }: Shown) {
  const entries = await conversation.past(signal, LAST_TURNS);
  if (entries.length > 0) window.print([""]);
  const hidden = (entries[0]?.turn ?? 1) - 1;
  if (hidden > 0) {
    window.say(`${hidden} earlier ${hidden === 1 ? "turn" : "turns"}: /history shows everything.`, colour.dim);
  }
  await show(window, markdown, { entries: entries.map(shortened), signal });
}

/** Shows all turns of a session. */
async function showHistory(window: Window, markdown: MarkdownStream, { conversation, signal }: Shown) {
  const entries = await conversation.past(signal);
  if (entries.length === 0) window.say("The session has no turns.");
  await show(window, markdown, { entries, signal });
}

interface Read {
  entries: readonly TranscriptEntry[];
  signal: AbortSignal;
}

async function show(window: Window, markdown: MarkdownStream, { entries, signal }: Read): Promise<void> {
  for (const [index, { role, text, attachments, failure }] of entries.entries()) {
    if (role === "user") {
      if (index > 0) window.print([""]);
      window.printPrompt(text);
      if (attachments.length > 0) window.say(`  attached: ${attachments.join(", ")}`, colour.dim);
    } else if (role === "tool") {
      if (entries[index - 1]?.role !== "tool") window.print([""]);
      window.print([colour.dim(shorten(`⏺ ${onOneLine(text)}`, window.columns, "end"))]);
    } else if (failure !== null) window.say(failure, colour.yellow);
    else await showText(window, markdown, { text, signal });
  }
}

async function showText(
  window: Window,
  markdown: MarkdownStream,
  { text, signal }: { text: string; signal: AbortSignal },
): Promise<void> {
  window.print([""]);
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

function shortened(entry: TranscriptEntry): TranscriptEntry {
  if (entry.text.length <= LONGEST) return entry;
  return { ...entry, text: `${entry.text.slice(0, LONGEST)}\n\n… /history shows the rest.` };
}

/** How long work runs before it is shown, in milliseconds. */
const AFTER_MS = 1_000;

/** Shows that the chat works on something other than a turn, and for how long. */
class WorkView implements LivePart {
  readonly #what: string;
  readonly #sign = new SignOfLife();

  constructor(what: string) {
    this.#what = what;
  }

  take(): string[] {
    return [];
  }

  live(columns: number, height: number): string[] {
    return this.#sign.ageMs < AFTER_MS ? [] : ["", this.#sign.row(this.#what, columns)].slice(-height);
  }
}

/** The window, in which the user can cancel work, and the signal that ends the chat. */
interface Workplace {
  window: Window;
  signal: AbortSignal;
}

/** Runs an operation other than a turn, and shows it. @throws Cancelled if the user cancels it; the signal's reason */
async function work<T>(
  { window, signal }: Workplace,
  what: string,
  run: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  return await window.working(new WorkView(what), async (cancelled) => {
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
