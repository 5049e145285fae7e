import type { CopilotSession } from "@github/copilot-sdk";
import { abortable, deadline } from "../../base/clock.js";
import type { Fleet } from "../../fleet/fleet.js";
import type { ResumeSessionOptions } from "../../hosts/options.js";
import type { TranscriptEntry } from "../../runtime/history/transcript.js";
import type { SessionView } from "../../sessions/view.js";
import { given } from "../flags/flags.js";
import {
  type Answers,
  type Conversation,
  type Conversations,
  isRefusal,
  modelOf,
  modelsOf,
  type PromptOptions,
  type SessionSummary,
} from "./conversation.js";

/** How long a server may take to start and to open a session, in milliseconds. */
const OPEN_MS = 30_000;

/** The sessions of a user, reached through the local fleet. */
export class FleetConversations implements Conversations {
  readonly place: string;
  readonly #fleet: Fleet;
  readonly user: string;
  readonly isEcho: boolean;
  readonly #answers: Answers;
  #title: string | undefined;

  /** @param title the title of the first session that is created; the others have the default */
  constructor(fleet: Fleet, user: string, { onPermissionRequest, ...answers }: Answers, title?: string) {
    this.#title = title;
    this.#fleet = fleet;
    this.user = user;
    this.place = `user ${user}`;
    this.isEcho = fleet.config.provider?.type === "echo";
    // With session.approve "all" or "none", the fleet itself decides about tools, so leave out the user's handler.
    const asks = fleet.config.session.approve === "ask" && onPermissionRequest !== undefined;
    this.#answers = asks ? { ...answers, onPermissionRequest } : answers;
  }

  async create(model: string | undefined, signal: AbortSignal): Promise<Conversation> {
    const { sessions } = this.#fleet;
    using limit = deadline(OPEN_MS, signal);
    const options = { user: this.user, ...this.#answers };
    const session = await sessions.create({
      ...options,
      ...given({ model, title: this.#title }),
      signal: limit.signal,
    });
    this.#title = undefined;
    return new FleetConversation(this.#fleet, options, session);
  }

  async resume(id: string, model: string | undefined, signal: AbortSignal): Promise<Conversation> {
    const options = { user: this.user, ...this.#answers, ...given({ model }) };
    using limit = deadline(OPEN_MS, signal);
    const session = await this.#fleet.sessions.resume(id, { ...options, signal: limit.signal });
    return new FleetConversation(this.#fleet, options, session);
  }

  async list(signal: AbortSignal): Promise<SessionSummary[]> {
    return await abortable(this.#fleet.sessions.list({ user: this.user }), signal);
  }

  async delete(id: string, signal: AbortSignal): Promise<void> {
    await abortable(this.#fleet.sessions.delete([id], { user: this.user, ignoreNotFound: true }), signal);
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
  /** False after the chat has left the session, until it opens the session again. */
  #isOpen = true;

  /** @param options the options for opening the session again */
  constructor(fleet: Fleet, options: ResumeSessionOptions, session: CopilotSession) {
    this.#fleet = fleet;
    this.#options = options;
    this.#session = session;
  }

  get id(): string {
    return this.#session.sessionId;
  }

  async send(prompt: string, options: PromptOptions): Promise<void> {
    await this.#fleet.sessions.send(await this.#opened(options.signal), prompt, options);
  }

  async view(): Promise<SessionView> {
    return await this.#fleet.sessions.get(this.id, { user: this.#options.user });
  }

  async model(signal: AbortSignal): Promise<string | null> {
    return await this.#asked(modelOf, signal);
  }

  async models(signal: AbortSignal): Promise<string[]> {
    return await this.#asked(modelsOf, signal);
  }

  /** Opens the session again with the model. If that succeeds, all later openings use this model, too. */
  async useModel(model: string, signal: AbortSignal): Promise<void> {
    const before = this.#options;
    this.#options = { ...before, model };
    try {
      await this.#reopen(signal);
    } catch (error) {
      this.#options = before;
      throw error;
    }
  }

  async past(signal: AbortSignal, turns?: number): Promise<TranscriptEntry[]> {
    const { user } = this.#options;
    const transcript = this.#fleet.sessions.transcript(this.id, { user, signal, ...given({ turns }) });
    return (await abortable(transcript, signal)).entries;
  }

  async leave(): Promise<void> {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    await this.#fleet.sessions.leave(this.#session, { park: true });
  }

  /** Sends a request. After an error other than a refusal or an abort, opens the session again and retries once. */
  async #asked<T>(ask: (session: CopilotSession) => Promise<T>, signal: AbortSignal): Promise<T> {
    const session = await this.#opened(signal);
    try {
      return await abortable(ask(session), signal);
    } catch (error) {
      if (signal.aborted || isRefusal(error)) throw error;
      await this.#reopen(signal);
      return await abortable(ask(this.#session), signal);
    }
  }

  async #opened(signal: AbortSignal): Promise<CopilotSession> {
    if (!this.#isOpen) await this.#reopen(signal);
    return this.#session;
  }

  async #reopen(signal: AbortSignal): Promise<void> {
    const { id } = this;
    await this.leave();
    using limit = deadline(OPEN_MS, signal);
    this.#session = await this.#fleet.sessions.resume(id, { ...this.#options, signal: limit.signal });
    this.#isOpen = true;
  }
}
