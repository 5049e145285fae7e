import { FleetError, quote } from "../errors.js";
import { readSessionFolder } from "../runtime/session-state.js";
import { sessionLocked } from "../sessions/problems.js";
import type { SessionRecord } from "../store/store.js";
import { type Attachment, isElsewhere, newAttachment } from "./attachments.js";
import type { ClientRequest } from "./client-message.js";
import type { DoorContext } from "./context.js";
import type { Link, Links, ServerLink } from "./links.js";
import type { OpenRequests } from "./open-requests.js";
import type { Opener } from "./opener.js";
import { methodDenied } from "./refusals.js";
import { saysMoved } from "./relay.js";

export interface AnswersContext extends DoorContext {
  user: string;
  openRequests: OpenRequests;
  attachments: Map<string, Attachment>;
  /** The client has the session open on a server here. */
  opened: (sessionId: string) => void;
  /** The client gets no events of the session any more, which may be in a turn of its. */
  left: (sessionId: string) => void;
  /** The server has ended with a session that the client was just leaving. */
  lost: (sessionId: string) => void;
  opener: Opener;
  links: Links;
}

/** The requests that the front door answers with work of its own: the life of sessions, and lists of them. */
export class Answers {
  readonly #context: AnswersContext;

  constructor(context: AnswersContext) {
    this.#context = context;
  }

  async create(request: ClientRequest): Promise<void> {
    const { opener, sessions, attachments } = this.#context;
    const record = await opener.recordNew(request.params);
    try {
      await this.open(request, record, true);
    } catch (error) {
      attachments.delete(record.id);
      await sessions.discard(record);
      throw error;
    }
  }

  async open(request: ClientRequest, record: SessionRecord, isNew: boolean): Promise<void> {
    const { opener, attachments, openRequests } = this.#context;
    const before = attachments.get(record.id);
    const attachment = before ?? newAttachment(record.id, record.serverId, request.params);
    let answer: unknown;
    try {
      await opener.open({
        record,
        asked: request.params,
        isNew,
        isOpen: before?.attached === true,
        onLink: ({ id }) => {
          attachment.linkId = id;
          attachment.heard = true;
          attachments.set(record.id, attachment);
        },
        onResult: (result, { own }) => {
          attachment.attached = true;
          attachment.asked = request.params;
          answer = result;
          // Before the events that follow. Where more has to be set, the session is not ready yet.
          if (own) openRequests.reply(request, result);
        },
      });
    } catch (error) {
      attachment.heard = attachment.attached;
      if (before === undefined) attachments.delete(record.id);
      throw error;
    }
    this.#context.opened(record.id);
    openRequests.reply(request, answer);
  }

  async delete(request: ClientRequest, record: SessionRecord): Promise<void> {
    this.#context.openRequests.reply(request, await this.deleteHere(request.method, record));
  }

  /**
   * Deletes a session that is on this host.
   *
   * @returns what its server answered
   * @throws FleetError `FLEET_METHOD_DENIED` for a member, `FLEET_SESSION_LOCKED`, `FLEET_STATE_UNWRITABLE`, and as
   * `Opener.serverFor`; `RpcError` with what the server refused it with.
   */
  async deleteHere(method: string, record: SessionRecord): Promise<unknown> {
    const { store, user, opener, attachments, links, directory } = this.#context;
    const { id } = record;
    await this.#reopened(id);
    if (record.owner !== user) throw methodDenied(method, "only the owner of a session deletes it");
    const lease = await store.readLease(id);
    if (lease !== null) throw sessionLocked(id, lease);
    // What is not in it would pass for deleted.
    await directory.assertStorage();
    const near = (await directory.has(record)) ? links.server(record.serverId) : undefined;
    const link = near ?? (await opener.link(await opener.serverFor(record)));
    const result = (await link.upstream.ask(method, { sessionId: id })) as { success?: unknown };
    // The runtime finds nothing to delete elsewhere, and the session goes on.
    const goesOn = result.success !== true && isElsewhere(attachments.get(id)?.asked ?? {});
    if (!goesOn) {
      if (readSessionFolder(link.server.home, id) === null) await store.deleteSession(id);
      else refuseFailed(id, result);
      attachments.delete(id);
    }
    return result;
  }

  /** Wherever the client has it open. */
  async detach(request: ClientRequest, record: SessionRecord): Promise<void> {
    const { attachments, left, lost, links, openRequests } = this.#context;
    await this.#reopened(record.id);
    const attachment = attachments.get(record.id);
    const link = links.live(attachment?.linkId ?? record.serverId);
    if (link === undefined) {
      // Its server has gone, and the session with it: there is nothing to leave.
      attachments.delete(record.id);
      openRequests.reply(request, { success: true });
      return;
    }
    openRequests.forward(link, request, {
      // Also for a client that says "session.destroy": a newer runtime may no longer know the older name.
      method: "session.detach",
      params: { sessionId: record.id },
      onAnswer: (answer) => {
        const moved = saysMoved(answer);
        if (!answer.failed || moved) {
          attachments.delete(record.id);
          left(record.id);
        }
        if (!moved) return undefined;
        openRequests.reply(request, { success: true }); // left by itself
        return "hold";
      },
      onLost: () => {
        attachments.delete(record.id);
        lost(record.id);
        return undefined;
      },
    });
  }

  /** Waits for the end of an opening that is under way: left before that, the session would be open again after it. */
  async #reopened(sessionId: string): Promise<void> {
    const { attachments } = this.#context;
    for (let under = attachments.get(sessionId)?.reopening; under; under = attachments.get(sessionId)?.reopening) {
      await under.catch(() => "whoever needs it is told");
    }
  }

  async list(link: ServerLink, request: ClientRequest): Promise<void> {
    const { openRequests, directory } = this.#context;
    if (link.own && directory.own === null) return openRequests.forward(link, request);
    const result = (await link.upstream.ask(request.method, request.params)) as { sessions?: unknown };
    const visible = await this.#visible();
    const ids = new Set(visible.map(({ id }) => id));
    const listed = Array.isArray(result.sessions) ? (result.sessions as { sessionId?: string }[]) : [];
    const here = link.own ? listed : listed.filter(({ sessionId = "" }) => ids.has(sessionId));
    // What a filter goes by is not in the records.
    const isFiltered = request.params.filter !== undefined && request.params.filter !== null;
    const elsewhere = isFiltered ? [] : await this.#elsewhere(visible, here);
    openRequests.reply(request, { ...result, sessions: [...here, ...elsewhere] });
  }

  /** The user's sessions that are on other hosts, as far as their records tell of them. As on a bare server: if they had a turn. */
  async #elsewhere(visible: readonly SessionRecord[], listed: readonly { sessionId?: string }[]): Promise<object[]> {
    const { directory, user } = this.#context;
    if (directory.own === null) return [];
    const known = new Set(listed.map(({ sessionId }) => sessionId));
    const found: object[] = [];
    for (const record of visible) {
      const { id, owner, turns, createdAt, lastUsedAt } = record;
      if (known.has(id) || owner !== user || turns === 0 || (await directory.has(record))) continue;
      found.push({ sessionId: id, startTime: createdAt, modifiedTime: lastUsedAt, isRemote: false });
    }
    return found;
  }

  async last(link: Link, request: ClientRequest): Promise<void> {
    const { openRequests } = this.#context;
    if (link.own) return openRequests.forward(link, request);
    const used = (await this.#visible()).sort((a, b) => b.lastUsedAt.localeCompare(a.lastUsedAt));
    const [last] = used;
    openRequests.reply(request, last === undefined ? {} : { sessionId: last.id });
  }

  async #visible(): Promise<SessionRecord[]> {
    const { store, user } = this.#context;
    return (await store.listSessions()).filter(({ owner, members }) => owner === user || members.includes(user));
  }
}

/** What the disk did not let the server delete is there. @throws FleetError `FLEET_STATE_UNWRITABLE`. */
function refuseFailed(id: string, result: unknown): void {
  const { success, error } = (result ?? {}) as { success?: unknown; error?: unknown };
  if (success !== false) return;
  throw new FleetError("FLEET_STATE_UNWRITABLE", `Session ${quote(id)} could not be deleted: ${String(error)}.`);
}
