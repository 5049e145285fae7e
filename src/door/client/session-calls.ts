import { FleetError, quote } from "../../base/errors.js";
import type { SessionRecord } from "../../base/session.js";
import { compareText } from "../../base/values/text.js";
import { relationTo } from "../../identity/identity.js";
import { readSessionFolder } from "../../runtime/history/session-state.js";
import { sessionLocked, warnOfUnreadable } from "../../sessions/problems.js";
import type { Opener } from "../routing/router.js";
import type { Opening } from "../routing/upstream-transport.js";
import { type ClientState, hasOwnFolder, newAttachment } from "../state/client-state.js";
import { type Link, type ServerLink, saysMoved } from "../state/links.js";
import type { ClientRequest } from "../wire/client-message.js";
import { methodDenied } from "../wire/refusals.js";

/** Answers the requests to open, leave, delete and list sessions. */
export class SessionCalls {
  readonly #state: ClientState;
  readonly #opener: Opener;

  constructor(state: ClientState, opener: Opener) {
    this.#state = state;
    this.#opener = opener;
  }

  async create(request: ClientRequest): Promise<void> {
    const { door, attachments } = this.#state;
    const record = await this.#opener.recordNew(request.params);
    try {
      await this.open(request, record, true);
    } catch (error) {
      attachments.delete(record.id);
      await door.sessions.discard(record);
      throw error;
    }
  }

  async open(request: ClientRequest, record: SessionRecord, isNew: boolean): Promise<void> {
    const { attachments, requests, door } = this.#state;
    const before = attachments.get(record.id);
    const attachment = before ?? newAttachment(record.id, record.serverId, request.params);
    let answer: unknown;
    try {
      const opening: Opening = {
        asked: request.params,
        isOpen: before?.attached === true,
        onLink: ({ id }) => {
          attachment.linkId = id;
          attachment.heard = true;
          attachments.set(record.id, attachment);
        },
        onResult: (result, link) => {
          attachment.asked = request.params;
          this.#state.attach(attachment, link);
          answer = result;
          // On the user's own server, reply now, so that the client gets the answer before the events that follow it.
          // On other servers, reply later, because the door must first set more options of the session.
          if (link.own) requests.reply(request, result);
        },
      };
      await this.#opener.open(record, opening, isNew);
    } catch (error) {
      attachment.heard = attachment.attached;
      if (before === undefined) attachments.delete(record.id);
      throw error;
    }
    door.opened(record.id, this.#state);
    requests.reply(request, answer);
  }

  async delete(request: ClientRequest, record: SessionRecord): Promise<void> {
    this.#state.requests.reply(request, await this.deleteHere(request.method, record));
  }

  /**
   * Deletes a session that is on this host.
   *
   * @returns the server's answer
   * @throws FleetError `FLEET_METHOD_DENIED` for a member; `FLEET_SESSION_LOCKED` while somebody has the lease;
   * `FLEET_STATE_UNWRITABLE` when the server could not delete the session; `RpcError` when the server refuses; and the
   * errors of `Opener.linkFor`.
   */
  async deleteHere(method: string, record: SessionRecord): Promise<unknown> {
    const { door, user, attachments } = this.#state;
    const { store, directory } = door;
    const { id } = record;
    await this.#reopened(id);
    if (record.owner !== user) throw methodDenied(method, "only the owner of a session deletes it");
    const lease = await store.leases.read(id);
    if (lease !== null) throw sessionLocked(id, lease);
    // Check this before `readSessionFolder`. If the shared storage is not mounted, every session looks deleted.
    await directory.assertStorage();
    const link = await this.#opener.linkFor(record);
    const result = (await link.upstream.ask(method, { sessionId: id })) as { success?: unknown };
    // If the client chose the session's folder, the runtime may fail to find the session, and then deletes nothing. In
    // that case, keep the record, because the session still exists.
    const goesOn = result.success !== true && hasOwnFolder(attachments.get(id)?.asked ?? {});
    if (!goesOn) {
      if (readSessionFolder(link.server.home, id) === null) await store.sessions.delete(id);
      else refuseFailed(id, result);
      attachments.delete(id);
    }
    return result;
  }

  /** Leaves the session, on whichever server or host the client has it open. */
  async detach(request: ClientRequest, record: SessionRecord): Promise<void> {
    const { attachments, turns, links, requests } = this.#state;
    await this.#reopened(record.id);
    const attachment = attachments.get(record.id);
    const link = links.live(attachment?.linkId ?? record.serverId);
    if (link === undefined) {
      // The server or host has ended, so there is nothing to leave.
      attachments.delete(record.id);
      requests.reply(request, { success: true });
      return;
    }
    requests.forward(link, request, {
      // Replace the old name "session.destroy", because a newer runtime may not know it.
      method: "session.detach",
      params: { sessionId: record.id },
      onAnswer: (answer) => {
        const moved = saysMoved(answer);
        if (!answer.failed || moved) this.#state.left(record.id);
        if (!moved) return undefined;
        // The other host answered that the session has left it. So the client no longer has the session open there.
        requests.reply(request, { success: true });
        return "hold";
      },
      onLost: (): undefined => {
        attachments.delete(record.id);
        turns.get(record.id)?.interrupted("lost");
      },
    });
  }

  /**
   * Waits until no other request is reopening the session. Otherwise that request would open the session again after
   * this one has left or deleted it.
   */
  async #reopened(sessionId: string): Promise<void> {
    const { attachments } = this.#state;
    for (let under = attachments.get(sessionId)?.reopening; under; under = attachments.get(sessionId)?.reopening) {
      await under.catch(() => "the request that needs it gets the error");
    }
  }

  async list(link: ServerLink, request: ClientRequest): Promise<void> {
    const { requests, door } = this.#state;
    const isWhole = this.#seesAll(link);
    if (isWhole && door.directory.own === null) return requests.forward(link, request);
    const result = (await link.upstream.ask(request.method, request.params)) as { sessions?: unknown };
    const visible = await this.#visible();
    const ids = new Set(visible.map(({ id }) => id));
    const listed = Array.isArray(result.sessions) ? (result.sessions as { sessionId?: string }[]) : [];
    const here = isWhole ? listed : listed.filter(({ sessionId = "" }) => ids.has(sessionId));
    // Leave out other hosts' sessions if there is a filter, because their records lack the values that a filter
    // compares.
    const isFiltered = request.params.filter !== undefined && request.params.filter !== null;
    const elsewhere = isFiltered ? [] : await this.#elsewhere(visible, here);
    requests.reply(request, { ...result, sessions: [...here, ...elsewhere] });
  }

  /**
   * The sessions that the user owns on other hosts, with the times from their records. Leaves out sessions without a
   * turn, as a bare server does.
   */
  async #elsewhere(visible: readonly SessionRecord[], listed: readonly { sessionId?: string }[]): Promise<object[]> {
    const { door, user } = this.#state;
    const { directory } = door;
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
    const { requests } = this.#state;
    if (this.#seesAll(link)) return requests.forward(link, request);
    const [last] = (await this.#visible()).sort((a, b) => compareText(b.lastUsedAt, a.lastUsedAt));
    requests.reply(request, last === undefined ? {} : { sessionId: last.id });
  }

  /** Whether the client may use all sessions of the server. */
  #seesAll({ own }: Link): boolean {
    return own && this.#state.identity.sessionId === undefined;
  }

  async #visible(): Promise<SessionRecord[]> {
    const { door, identity } = this.#state;
    await door.sessions.lastUses.flush();
    const { warn } = door.sessions.context;
    const records = await door.store.sessions.list(warnOfUnreadable(warn));
    return records.filter((record) => relationTo(identity, record) !== "foreign");
  }
}

function refuseFailed(id: string, result: unknown): void {
  const { success, error } = (result ?? {}) as { success?: unknown; error?: unknown };
  if (success !== false) return;
  throw new FleetError("FLEET_STATE_UNWRITABLE", `Session ${quote(id)} could not be deleted: ${String(error)}.`);
}
