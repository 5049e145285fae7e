import { printableLines } from "../../config/values/text.js";
import { isFleetError, quote } from "../../errors.js";
import { meantIds } from "../../model/reference.js";
import { either } from "../../runtime/clock.js";
import { given } from "../flags/flags.js";
import { Interrupted } from "../prompt/interrupted.js";
import { colour } from "../render/colour.js";
import { renderAge, renderUntil } from "../render/table.js";
import { inChat } from "../report.js";
import { CHAT_COMMANDS, type CommandName, KEYS, parseEntered } from "./commands.js";
import type { Conversation, Conversations } from "./conversation/conversation.js";
import type { InputHistory } from "./input-history.js";
import { leaveSession } from "./leave.js";
import type { MarkdownStream } from "./markdown/stream.js";
import { chooseModel } from "./model-command.js";
import { showHistory, showLastTurns } from "./past.js";
import { wrap } from "./terminal/layout.js";
import { Cancelled } from "./terminal/window.js";
import { TurnView } from "./turn-view.js";
import { ChatUsage } from "./usage.js";
import { type Workplace, work } from "./work.js";

const MOST_SESSIONS = 20;
const OPENING = "Opening the session";

export interface ChatParts extends Workplace {
  conversations: Conversations;
  history: InputHistory;
  markdown: MarkdownStream;
  /** Returns the command that continues a session. */
  resumeWith: (id: string) => string;
}

/** A chat on a terminal: reads prompts and commands until the user ends the chat. A failed turn does not end it. */
export class Chat {
  readonly #parts: ChatParts;
  readonly #usage = new ChatUsage();
  #conversation: Conversation;
  /** Whether this chat created the session and has not tried to send a prompt to it. */
  #isUnused: boolean;
  #modelName: string | null = null;
  #lastTurn: TurnView | null = null;

  private constructor(parts: ChatParts, conversation: Conversation, isUnused: boolean) {
    this.#parts = parts;
    this.#conversation = conversation;
    this.#isUnused = isUnused;
  }

  static async run(parts: ChatParts, sessionId: string | null, model: string | undefined): Promise<void> {
    const { conversations } = parts;
    const opening = work(parts, OPENING, async (signal) =>
      sessionId === null
        ? await conversations.create(model, signal)
        : await conversations.resume(sessionId, model, signal),
    );
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
      for (const warning of this.#parts.conversations.takeWarnings()) window.say(`Warning: ${warning}`, colour.yellow);
      window.print([""]);
      if (this.#parts.signal.aborted) return;
    }
  }

  /** Shows the model, the place and the session above the prompt, and waits for the user's next prompt. */
  async #next(): Promise<string | null> {
    const { window, conversations } = this.#parts;
    const view = await this.#conversation.view().catch(() => null);
    const place = view === null ? conversations.place : `server ${view.serverId}`;
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
    const { window, markdown, conversations } = this.#parts;
    switch (name) {
      case "help":
        return this.#help();
      case "new":
        return await this.#switch(
          await work(this.#parts, OPENING, async (signal) => await conversations.create(undefined, signal)),
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
      window.print(wrap([{ text: purpose }], window.columns, " ".repeat(14), colour.bold(key.padEnd(14))));
    }
  }

  async #resume(argument: string): Promise<void> {
    const { window, conversations } = this.#parts;
    const sessions = await work(
      this.#parts,
      "Listing the sessions",
      async (signal) => await conversations.list(signal),
    );
    if (argument === "") {
      for (const { id, title, lastUsedAt } of sessions.slice(0, MOST_SESSIONS)) {
        const age = renderAge(Date.now() - Date.parse(lastUsedAt));
        window.say(
          `${id === this.#conversation.id ? "*" : " "} ${title === null ? id : `${printableLines(title)}  ${id}`}  used ${age} ago`,
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
    const opening = async (signal: AbortSignal) => await conversations.resume(id, undefined, signal);
    await this.#switch(await work(this.#parts, OPENING, opening), false);
  }

  /** Leaves the present session and continues in `next`, which is already open. */
  async #switch(next: Conversation, isUnused: boolean): Promise<void> {
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
    const { window, conversations, markdown } = this.#parts;
    const conversation = this.#conversation;
    try {
      await work(this.#parts, "Reading the session", async (signal) => {
        this.#modelName = await conversation.model(signal).catch(() => null);
        window.say([conversations.place, ...this.#modelPart(), this.#sessionPart()].join(" · "), colour.bold);
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
    if (this.#parts.conversations.isEcho) return ["model echo"];
    return this.#modelName === null ? [] : [`model ${this.#modelName}`];
  }

  #sessionPart(): string {
    return `session ${this.#conversation.id}`;
  }

  /** Shows an error of any class. The server, the front door and the SDK also throw errors that are not FleetErrors. */
  #report(error: unknown): void {
    const { window, conversations } = this.#parts;
    if (!isFleetError(error)) {
      const text = error instanceof Error ? error.message : String(error);
      window.say(text, colour.yellow);
      return;
    }
    const { user } = conversations;
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
