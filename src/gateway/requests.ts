import { isFleetError } from "../errors.js";
import { RpcError } from "../runtime/client/raw-connection.js";
import { readSessionFolder } from "../runtime/session-state.js";
import { sessionLocked } from "../sessions/problems.js";
import type { SessionRecord } from "../store/store.js";
import { type Attachment, newAttachment, saysUnloaded } from "./attachments.js";
import type { ClientRequest, Params } from "./client-message.js";
import type { DoorContext, DoorEvent } from "./context.js";
import type { Exchange } from "./exchange.js";
import type { Link } from "./links.js";
import { type Scope, scopeOf } from "./methods.js";
import type { Opener } from "./opener.js";
import { doorDraining, methodDenied, noSuchSession } from "./refusals.js";
import { checkOptions } from "./settings.js";
import type { Turns } from "./turns.js";

export interface RequestsContext extends DoorContext {
  user: string;
  exchange: Exchange;
  attachments: Map<string, Attachment>;
  opener: Opener;
  turns: Turns;
  /** The server for what is about no session. */
  home: () => Promise<Link>;
  /** The connection to a server, if there is one at the moment. */
  liveLink: (serverId: string) => Link | undefined;
  linkFor: (record: SessionRecord) => Promise<Link>;
  unloaded: (sessionId: string) => void;
  isDraining: () => boolean;
  onEvent: (event: Omit<DoorEvent, "address" | "user">) => void;
}

/** The requests of one client: each is judged by the table of methods, and then sent on, answered or refused. */
export class Requests {
  readonly #context: RequestsContext;
  /** What is said to one session, or to the server, arrives there in the order in which it was said. */
  readonly #lines = new Map<string, Promise<void>>();

  constructor(context: RequestsContext) {
    this.#context = context;
  }

  take(request: ClientRequest): void {
    const { exchange } = this.#context;
    if (!exchange.begin(request)) {
      this.#context.onEvent({ event: "denied", detail: "an id that is in use" });
      return;
    }
    const { sessionId } = request.params;
    // A session that gets its id here is not behind anything, and opening it may take a while.
    if (request.method === "session.create" && typeof sessionId !== "string") {
      void this.#judge(request);
      return;
    }
    const line = typeof sessionId === "string" ? sessionId : "";
    const before = this.#lines.get(line) ?? Promise.resolve();
    const now = before.then(async () => await this.#judge(request));
    this.#lines.set(line, now);
    void now.then(() => {
      if (this.#lines.get(line) === now) this.#lines.delete(line);
    });
  }

  /** Never rejects. */
  async #judge(request: ClientRequest): Promise<void> {
    const { exchange, onEvent } = this.#context;
    const { method, params } = request;
    try {
      await this.#route(scopeOf(method), request);
    } catch (error) {
      if (error instanceof RpcError) {
        exchange.fail(request, error);
        return;
      }
      exchange.refuse(request, error);
      const code = isFleetError(error) ? error.code : "FLEET_INTERNAL";
      const named = typeof params.sessionId === "string" ? { sessionId: params.sessionId.slice(0, 128) } : {};
      const bug = isFleetError(error)
        ? {}
        : { detail: error instanceof Error ? (error.stack ?? error.message) : String(error) };
      onEvent({ event: isFleetError(error) ? "denied" : "failed", method, code, ...named, ...bug });
    }
  }

  async #route(scope: Scope, request: ClientRequest): Promise<void> {
    const { exchange, home } = this.#context;
    const { method, params } = request;
    switch (scope) {
      case "never":
        throw methodDenied(method, "the front door does not pass it on");
      case "connect":
        throw methodDenied(method, "this connection is authenticated already");
      case "free":
        return exchange.forward(await home(), request);
      case "own":
        return exchange.forward(await this.#ownHome(method), request);
      case "list":
        return await this.#list(request);
      case "last":
        return await this.#last(request);
      case "create":
        return await this.#create(request);
    }
    const record = await this.#recordFor(params, scope === "metadata" ? request : undefined);
    if (record === null) return;
    switch (scope) {
      case "resume":
        return await this.#open(request, record, false);
      case "delete":
        return await this.#delete(request, record);
      case "detach":
        return await this.#detach(request, record);
      case "send":
        if (this.#context.isDraining()) throw doorDraining();
        return await this.#context.turns.send(request, record);
      case "steer":
        if (request.method === "session.abort" && this.#context.turns.cancel(record.id)) {
          return exchange.reply(request, { success: true });
        }
        await this.#assertFree(record);
        break;
      case "host":
        await this.#assertFree(record);
        break;
      case "work":
        if (record.kind === "collaborative") {
          throw methodDenied(method, "in a collaborative session the model works in turns only (session.send)");
        }
        break;
    }
    const link = await this.#context.linkFor(record);
    if (scope === "host" && !link.own) {
      throw methodDenied(method, "it reaches past the session, on a server where others are, too");
    }
    const { config } = this.#context;
    if (scope === "options") checkOptions(method, params, { own: link.own, config });
    this.#forward(link, request, record);
  }

  /** Sends a request about a session on; if the session was unloaded meanwhile, it is opened again and the request repeated. */
  #forward(link: Link, request: ClientRequest, record: SessionRecord, again = false): void {
    const { exchange, attachments, unloaded, linkFor } = this.#context;
    const params = this.#decision(link, request, attachments.get(record.id));
    exchange.forward(link, request, {
      params: { ...params, sessionId: record.id },
      onAnswer: ({ failed, body }) => {
        if (again || !failed || !attachments.has(record.id) || !saysUnloaded(body)) return undefined;
        unloaded(record.id);
        linkFor(record).then(
          (reopened) => this.#forward(reopened, request, record, true),
          (error: unknown) => exchange.refuse(request, error),
        );
        return "hold";
      },
    });
  }

  /**
   * Who may decide on a tool is whose server it runs on. Elsewhere approval counts only for the client's own tools, which
   * run in the client, unless the fleet approves of all.
   */
  #decision({ own }: Link, { method, params }: ClientRequest, attachment: Attachment | undefined): Params {
    if (method !== "session.permissions.handlePendingPermissionRequest") return params;
    const kind = attachment?.permissions.get(String(params.requestId));
    attachment?.permissions.delete(String(params.requestId));
    if (own || this.#context.config.session.approve === "all") return params;
    const { kind: decision } = (params.result ?? {}) as { kind?: unknown };
    if (decision === "reject" || decision === "user-not-available") return params;
    if (decision === "approve-once" && kind === "custom-tool") return params;
    this.#context.onEvent({ event: "denied", method, detail: "an approval that is not this user's to give" });
    const feedback = 'Tools are not allowed here (session.approve is "none").';
    return { requestId: params.requestId, result: { kind: "reject", feedback } };
  }

  async #ownHome(method: string): Promise<Link> {
    const link = await this.#context.home();
    if (link.own) return link;
    throw methodDenied(method, "it is about the whole server, where others are, too");
  }

  /**
   * The record of a session that the user may use. With `asking`, one that there is not is answered as a bare server does:
   * with nothing.
   */
  async #recordFor(params: Params, asking?: ClientRequest): Promise<SessionRecord | null> {
    const { sessions, user, exchange, onEvent } = this.#context;
    const { sessionId } = params;
    if (typeof sessionId !== "string" || !isUsableId(sessionId)) throw noSuchSession(String(sessionId));
    try {
      return await sessions.recordFor(sessionId, user);
    } catch (error) {
      if (!isFleetError(error, "FLEET_SESSION_NOT_FOUND")) throw error;
      if (asking === undefined) throw noSuchSession(sessionId);
      onEvent({ event: "denied", method: asking.method, sessionId, code: error.code });
      exchange.reply(asking, {});
      return null;
    }
  }

  async #create(request: ClientRequest): Promise<void> {
    const { opener, store, attachments } = this.#context;
    const record = await opener.recordNew(request.params);
    try {
      await this.#open(request, record, true);
    } catch (error) {
      // Nobody has used it yet: an id whose creation failed is free again.
      attachments.delete(record.id);
      await store.deleteSession(record.id);
      throw error;
    }
  }

  async #open(request: ClientRequest, record: SessionRecord, isNew: boolean): Promise<void> {
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

  async #delete(request: ClientRequest, record: SessionRecord): Promise<void> {
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

  async #detach(request: ClientRequest, record: SessionRecord): Promise<void> {
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

  /**
   * In a collaborative session whoever is in a turn is alone in it. @throws FleetError `FLEET_SESSION_LOCKED`.
   */
  async #assertFree(record: SessionRecord): Promise<void> {
    const { store, turns } = this.#context;
    if (record.kind === "private" || turns.of(record.id)?.active === true) return;
    const lease = await store.readLease(record.id);
    if (lease !== null) throw sessionLocked(record.id, lease);
  }

  async #list(request: ClientRequest): Promise<void> {
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

  async #last(request: ClientRequest): Promise<void> {
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

/** What cannot be an id is in no store, and must not become a path. */
function isUsableId(id: string): boolean {
  return /^[A-Za-z0-9._-]{1,128}$/.test(id) && !/^\.{1,2}$/.test(id);
}
