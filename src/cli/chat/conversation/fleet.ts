import type { CopilotSession } from "@github/copilot-sdk";
import type { Fleet } from "../../../fleet/fleet.js";
import type { ResumeSessionOptions } from "../../../fleet/options.js";
import type { TranscriptEntry } from "../../../runtime/history/transcript.js";
import { given } from "../../flags/flags.js";
import {
  type Answers,
  type Conversation,
  type Conversations,
  modelOf,
  modelsOf,
  type PromptOptions,
  type SessionSummary,
} from "./conversation.js";

/** The sessions of a user of this fleet. */
export class FleetConversations implements Conversations {
  readonly place: string;
  readonly #fleet: Fleet;
  readonly user: string;
  readonly isEcho: boolean;
  readonly #answers: Answers;

  constructor(fleet: Fleet, user: string, { onPermissionRequest, ...answers }: Answers) {
    this.#fleet = fleet;
    this.user = user;
    this.place = `user ${user}`;
    this.isEcho = fleet.config.provider?.type === "echo";
    // With the values "all" and "none" of session.approve, nobody is asked.
    const asks = fleet.config.session.approve === "ask" && onPermissionRequest !== undefined;
    this.#answers = asks ? { ...answers, onPermissionRequest } : answers;
  }

  async create(model: string | undefined): Promise<Conversation> {
    const { sessions } = this.#fleet;
    const session = await sessions.create({ user: this.user, ...this.#answers, ...given({ model }) });
    return new FleetConversation(this.#fleet, { user: this.user, ...this.#answers }, session);
  }

  async resume(id: string, model?: string): Promise<Conversation> {
    const options = { user: this.user, ...this.#answers, ...given({ model }) };
    return new FleetConversation(this.#fleet, options, await this.#fleet.sessions.resume(id, options));
  }

  async list(): Promise<SessionSummary[]> {
    return await this.#fleet.sessions.list({ user: this.user });
  }

  async delete(id: string): Promise<void> {
    await this.#fleet.sessions.delete([id], { user: this.user, ignoreNotFound: true });
  }

  takeWarnings(): string[] {
    return this.#fleet.takeWarnings();
  }

  async close(): Promise<void> {
    // There is nothing to do, because the command closes the fleet.
  }
}

class FleetConversation implements Conversation {
  readonly #fleet: Fleet;
  #options: ResumeSessionOptions;
  #session: CopilotSession;
  /** False after the session was left and could not be opened again. */
  #isOpen = true;

  /** @param options with which the session is opened again */
  constructor(fleet: Fleet, options: ResumeSessionOptions, session: CopilotSession) {
    this.#fleet = fleet;
    this.#options = options;
    this.#session = session;
  }

  get id(): string {
    return this.#session.sessionId;
  }

  async send(prompt: string, options: PromptOptions): Promise<void> {
    await this.#fleet.sessions.send(await this.#opened(), prompt, options);
  }

  async server(): Promise<string> {
    return (await this.#fleet.sessions.get(this.id, { user: this.#options.user })).serverId;
  }

  async model(): Promise<string | null> {
    return await this.#asked(modelOf);
  }

  async models(): Promise<string[]> {
    return await this.#asked(modelsOf);
  }

  /** Opens the session again with the model, so that the model stays when its server is replaced. */
  async useModel(model: string): Promise<void> {
    const before = this.#options;
    this.#options = { ...before, model };
    try {
      await this.#reopen();
    } catch (error) {
      this.#options = before;
      throw error;
    }
  }

  async past(turns?: number): Promise<TranscriptEntry[]> {
    const { user } = this.#options;
    return (await this.#fleet.sessions.transcript(this.id, { user, ...given({ turns }) })).entries;
  }

  async leave(): Promise<void> {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    await this.#fleet.sessions.leave(this.#session, { park: true });
  }

  /** Asks the server. Opens the session again if its server has ended since the last turn. */
  async #asked<T>(ask: (session: CopilotSession) => Promise<T>): Promise<T> {
    const session = await this.#opened();
    try {
      return await ask(session);
    } catch {
      await this.#reopen();
      return await ask(this.#session);
    }
  }

  async #opened(): Promise<CopilotSession> {
    if (!this.#isOpen) await this.#reopen();
    return this.#session;
  }

  async #reopen(): Promise<void> {
    const { id } = this;
    await this.leave();
    this.#session = await this.#fleet.sessions.resume(id, this.#options);
    this.#isOpen = true;
  }
}
