import { isFleetError, quote } from "../../errors.js";
import { meantIds } from "../../model/reference.js";
import { abortable, either } from "../../runtime/deadline.js";
import { given } from "../flags/flags.js";
import { colour } from "../render/colour.js";
import { renderAge } from "../render/table.js";
import { inChat } from "../report.js";
import { CHAT_COMMANDS, type CommandName, KEYS, parseEntered } from "./commands.js";
import type { Conversation, Conversations } from "./conversation/conversation.js";
import type { InputHistory } from "./input-history.js";
import type { MarkdownStream } from "./markdown/stream.js";
import { showHistory, showLastTurns } from "./past.js";
import { wrap } from "./terminal/layout.js";
import { TurnCancelled, type Window } from "./terminal/window.js";
import { TurnView } from "./turn-view.js";
import { ChatUsage } from "./usage.js";

const MOST_SESSIONS = 20;

export interface ChatParts {
  window: Window;
  conversations: Conversations;
  history: InputHistory;
  markdown: MarkdownStream;
  /** Ends the chat. */
  signal: AbortSignal;
  /** The command that continues a session. */
  resumeWith: (id: string) => string;
}

/** A chat on a terminal: reads prompts and commands until the user ends it. A failed turn does not end it. */
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
    const { conversations, signal } = parts;
    const opening = sessionId === null ? conversations.create(model) : conversations.resume(sessionId, model);
    const chat = new Chat(parts, await abortable(opening, signal), sessionId === null);
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
          window.say(
            `There is no command /${entered.word}.${meant} /help lists all. To send this as a prompt, write //.`,
          );
        }
      } catch (error) {
        if (this.#parts.signal.aborted) return;
        this.#report(error);
      }
      for (const warning of this.#parts.conversations.takeWarnings()) window.say(`Warning: ${warning}`, colour.yellow);
      window.print([""]);
      if (this.#parts.signal.aborted) return;
    }
  }

  /** Shows the model, the place and the session above the prompt, and waits for the user's next prompt. */
  async #next(): Promise<string | null> {
    const { window, conversations } = this.#parts;
    const server = await this.#conversation.server().catch(() => null);
    const place = server === null ? conversations.place : `server ${server}`;
    window.status = [...this.#modelPart(), place, this.#sessionPart()].join(" · ");
    return await window.next();
  }

  async #turn(prompt: string): Promise<void> {
    const { window, markdown, signal } = this.#parts;
    const view = new TurnView(window, markdown);
    this.#lastTurn = view;
    let hasBegun = false;
    // A prompt may be in the session even if sending it fails, and then the session must not be deleted.
    this.#isUnused = false;
    try {
      await window.during(view, async (cancelled) => {
        using stop = either(signal, cancelled);
        try {
          await this.#conversation.send(prompt, {
            signal: stop.signal,
            onEvent: (event) => {
              hasBegun = true;
              this.#usage.push(event);
              if (!("agentId" in event) || event.agentId === undefined) view.push(event);
            },
            onWait: (wait) => view.report(wait),
            onLost: () => view.report("the connection ended, and is made again"),
          });
        } finally {
          await view.finish();
        }
      });
    } catch (error) {
      // Nothing shows that the session has the prompt, so let the user decide whether to send it again.
      if (!hasBegun) window.giveBack(prompt);
      throw error;
    }
  }

  async #command(name: Exclude<CommandName, "exit">, argument: string): Promise<void> {
    const { window, markdown } = this.#parts;
    switch (name) {
      case "help":
        return this.#help();
      case "new":
        return await this.#switch(await this.#parts.conversations.create(undefined), true);
      case "resume":
        return await this.#resume(argument);
      case "model":
        return await this.#model(argument);
      case "history":
        return await showHistory(window, markdown, this.#conversation);
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
      window.print(
        wrap([{ text: key.padEnd(14), style: colour.bold }, { text: purpose }], window.columns, " ".repeat(14)),
      );
    }
  }

  async #resume(argument: string): Promise<void> {
    const { window, conversations } = this.#parts;
    const sessions = await conversations.list();
    if (argument === "") {
      for (const { id, lastUsedAt } of sessions.slice(0, MOST_SESSIONS)) {
        const age = renderAge(Date.now() - Date.parse(lastUsedAt));
        window.say(`${id === this.#conversation.id ? "*" : " "} ${id}  used ${age} ago`);
      }
      if (sessions.length > MOST_SESSIONS) window.say(`… and ${sessions.length - MOST_SESSIONS} more`);
      return window.say("/resume ID continues one. The beginning of an ID is enough.", colour.dim);
    }
    // If no session matches, take the argument as an id. If no such session exists, resume() reports it.
    const [id = argument, ...others] = meantIds(
      argument,
      sessions.map((session) => session.id),
    );
    if (others.length > 0)
      return window.say(`Several sessions begin with ${quote(argument)}: ${[id, ...others].join(", ")}.`);
    if (id === this.#conversation.id) return window.say("This session is already open.");
    await this.#switch(await conversations.resume(id), false);
  }

  async #model(argument: string): Promise<void> {
    const { window } = this.#parts;
    if (argument !== "") await this.#conversation.useModel(argument);
    this.#modelName = await this.#conversation.model();
    window.say(`The model is ${this.#modelName ?? "the provider's default"}.`);
    if (this.#parts.conversations.isEcho) window.say("The echo model answers in its place.", colour.dim);
    const others = argument === "" ? await this.#conversation.models() : [];
    if (others.length > 0) window.say(`The provider offers: ${others.join(", ")}.`);
  }

  /** Leaves the present session only after the next one is open. */
  async #switch(next: Conversation, isUnused: boolean): Promise<void> {
    await this.#leave();
    this.#conversation = next;
    this.#isUnused = isUnused;
    this.#lastTurn = null;
    await this.#begin();
  }

  async #begin(): Promise<void> {
    const { window, conversations, markdown } = this.#parts;
    this.#modelName = await this.#conversation.model().catch(() => null);
    window.say([conversations.place, ...this.#modelPart(), this.#sessionPart()].join(" · "), colour.bold);
    window.say("/help lists the commands. Ctrl-C cancels a turn. Ctrl-D ends the chat.", colour.dim);
    if (!this.#isUnused) await showLastTurns(window, markdown, this.#conversation);
  }

  #modelPart(): string[] {
    if (this.#parts.conversations.isEcho) return ["model echo"];
    return this.#modelName === null ? [] : [`model ${this.#modelName}`];
  }

  #sessionPart(): string {
    return `session ${this.#conversation.id}`;
  }

  /** Leaves the session. Deletes it if nobody has used it. */
  async #leave(): Promise<void> {
    const { conversations, window, resumeWith } = this.#parts;
    const { id } = this.#conversation;
    const isEmpty = this.#isUnused && (await this.#isEmpty());
    await this.#conversation.leave();
    if (isEmpty) {
      await conversations.delete(id);
      window.say("The session had no prompt, so it is deleted.", colour.dim);
    } else window.sayCommand(`Continue this session: ${resumeWith(id)}`);
  }

  /** Whether the session has no turn. Asks the server, because another client may have used the session. */
  async #isEmpty(): Promise<boolean> {
    try {
      return (await this.#conversation.past(1)).length === 0;
    } catch {
      return false; // a session that cannot be read is not deleted
    }
  }

  /** Reports any error, because the server, the front door and the SDK also throw errors that are not a FleetError. */
  #report(error: unknown): void {
    const { window, conversations } = this.#parts;
    if (!isFleetError(error)) {
      const text = error instanceof Error ? error.message : String(error);
      window.say(error instanceof TurnCancelled ? "The turn was cancelled." : text, colour.yellow);
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
