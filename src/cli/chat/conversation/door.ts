import type { Door } from "../../flags/door.js";
import { given } from "../../flags/flags.js";
import type { Answers, Conversation, Conversations, SessionSummary } from "./conversation.js";
import { DoorConversation } from "./door-conversation.js";
import { answered, DoorLink } from "./door-link.js";

/** The sessions that a token gives access to at a front door. */
export class DoorConversations implements Conversations {
  readonly place: string;
  readonly user = undefined;
  /** Always false, because a front door does not report the provider. */
  readonly isEcho = false;
  readonly #door: DoorLink;
  readonly #answers: Answers;

  constructor(door: Door, answers: Answers) {
    this.#door = new DoorLink(door);
    this.place = `front door ${door.name}`;
    this.#answers = answers;
  }

  async create(model: string | undefined, signal: AbortSignal): Promise<Conversation> {
    const settings = { streaming: true, ...this.#answers };
    const attached = await this.#door.create({ ...settings, ...given({ model }) }, signal);
    return new DoorConversation(this.#door, settings, attached);
  }

  async resume(id: string, model: string | undefined, signal: AbortSignal): Promise<Conversation> {
    const settings = { streaming: true, ...this.#answers, ...given({ model }) };
    return new DoorConversation(this.#door, settings, await this.#door.resume(id, settings, signal));
  }

  async list(signal: AbortSignal): Promise<SessionSummary[]> {
    const { client, closed } = await this.#door.connected(signal);
    const sessions = await answered(client.listSessions(), closed, signal);
    return sessions
      .map(({ sessionId, modifiedTime }) => ({ id: sessionId, title: null, lastUsedAt: modifiedTime.toISOString() }))
      .sort((a, b) => (a.lastUsedAt < b.lastUsedAt ? 1 : -1));
  }

  async delete(id: string, signal: AbortSignal): Promise<void> {
    const { client, closed } = await this.#door.connected(signal);
    await answered(client.deleteSession(id), closed, signal);
  }

  takeWarnings(): string[] {
    return [];
  }

  async close(): Promise<void> {
    await this.#door.close();
  }
}
