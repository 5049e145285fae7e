import { readSessionFolder } from "../runtime/session-state.js";
import { sessionLocked } from "../sessions/problems.js";
import type { SessionRecord } from "../store/store.js";
import { type Attachment, newAttachment } from "./attachments.js";
import type { ClientRequest } from "./client-message.js";
import type { DoorContext } from "./context.js";
import type { Exchange } from "./exchange.js";
import type { Link } from "./links.js";
import type { Opener } from "./opener.js";
import { methodDenied } from "./refusals.js";

export interface AnswersContext extends DoorContext {
  user: string;
  exchange: Exchange;
  attachments: Map<string, Attachment>;
  opener: Opener;
  /** The server for what is about no session. */
  home: () => Promise<Link>;
  /** The connection to a server, if there is one at the moment. */
  liveLink: (serverId: string) => Link | undefined;
}

/** The requests that the front door answers with work of its own: the life of sessions, and lists of them. */
export class Answers {
  readonly #context: AnswersContext;

  constructor(context: AnswersContext) {
    this.#context = context;
  }

  async create(request: ClientRequest): Promise<void> {
    const { opener, store, attachments } = this.#context;
    const record = await opener.recordNew(request.params);
    try {
      await this.open(request, record, true);
    } catch (error) {
      // Nobody has used it yet: an id whose creation failed is free again.
      attachments.delete(record.id);
      await store.deleteSession(record.id);
      throw error;
    }
  }

  async open(request: ClientRequest, record: SessionRecord, isNew: boolean): Promise<void> {
    const { opener, attachments, exchange } = this.#context;
    const before = attachments.get(record.id);
    const attachment = before ?? newAttachment(record, request.params);
    let answer: unknown;
    try {
      await opener.open({
        record,
        asked: request.params,
        isNew,
        onLink: ({ server }) => {
          attachment.serverId = server.id;
          attachments.set(record.id, attachment);
        },
        onResult: (result, { own }) => {
          attachment.attached = true;
          attachment.asked = request.params;
          answer = result;
          // Before the events that follow. Where more has to be set, the session is not ready yet.
          if (own) exchange.reply(request, result);
        },
      });
    } catch (error) {
      if (before === undefined) attachments.delete(record.id);
      throw error;
    }
    exchange.reply(request, answer);
  }

  async delete(request: ClientRequest, record: SessionRecord): Promise<void> {
    const { store, user, exchange, opener, attachments, liveLink } = this.#context;
    const { id } = record;
    if (record.owner !== user) throw methodDenied(request.method, "only the owner of a session deletes it");
    const lease = await store.readLease(id);
    if (lease !== null) throw sessionLocked(id, lease);
    const link = liveLink(record.serverId) ?? (await opener.link(await opener.serverFor(record)));
    const result = await link.upstream.request(request.method, { sessionId: id });
    if (readSessionFolder(link.server.home, id) === null) await store.deleteSession(id);
    attachments.delete(id);
    exchange.reply(request, result);
  }

  async detach(request: ClientRequest, record: SessionRecord): Promise<void> {
    const { attachments, liveLink, exchange } = this.#context;
    const attachment = attachments.get(record.id);
    const link = liveLink(attachment?.serverId ?? record.serverId);
    if (link === undefined || attachment?.attached === false) {
      // Its server has gone, and the session with it: there is nothing to leave.
      attachments.delete(record.id);
      exchange.reply(request, { success: true });
      return;
    }
    exchange.forward(link, request, {
      params: { sessionId: record.id },
      onAnswer: ({ failed }) => {
        if (!failed) attachments.delete(record.id);
        return undefined;
      },
      onLost: () => void attachments.delete(record.id),
    });
  }

  async list(request: ClientRequest): Promise<void> {
    const { home, exchange } = this.#context;
    const link = await home();
    if (link.own) return exchange.forward(link, request);
    const result = (await link.upstream.request(request.method, request.params)) as { sessions?: unknown };
    const visible = new Set((await this.#visible()).map(({ id }) => id));
    const sessions = Array.isArray(result.sessions) ? result.sessions : [];
    exchange.reply(request, {
      sessions: sessions.filter((entry: { sessionId?: string }) => visible.has(entry.sessionId ?? "")),
    });
  }

  async last(request: ClientRequest): Promise<void> {
    const { home, exchange } = this.#context;
    const link = await home();
    if (link.own) return exchange.forward(link, request);
    const used = (await this.#visible()).sort((a, b) => b.lastUsedAt.localeCompare(a.lastUsedAt));
    const [last] = used;
    exchange.reply(request, last === undefined ? {} : { sessionId: last.id });
  }

  async #visible(): Promise<SessionRecord[]> {
    const { store, user } = this.#context;
    return (await store.listSessions()).filter(({ owner, members }) => owner === user || members.includes(user));
  }
}
