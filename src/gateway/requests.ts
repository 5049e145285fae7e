import { isFleetError } from "../errors.js";
import { RpcError } from "../runtime/client/raw-connection.js";
import { sessionLocked } from "../sessions/problems.js";
import type { SessionRecord } from "../store/store.js";
import { Answers, type AnswersContext } from "./answers.js";
import { saysUnloaded } from "./attachments.js";
import type { ClientRequest, Params } from "./client-message.js";
import type { DoorEvent } from "./context.js";
import type { Link } from "./links.js";
import { type Scope, scopeOf } from "./methods.js";
import { checkReach, decide } from "./reach.js";
import { doorDraining, methodDenied, noSuchSession } from "./refusals.js";
import { checkOptions } from "./settings.js";
import type { Turns } from "./turns.js";

export interface RequestsContext extends AnswersContext {
  turns: Turns;
  linkFor: (record: SessionRecord) => Promise<Link>;
  unloaded: (sessionId: string) => void;
  isDraining: () => boolean;
  onEvent: (event: Omit<DoorEvent, "address" | "user">) => void;
}

/** The requests of one client: each is judged by the table of methods, and then sent on, answered or refused. */
export class Requests {
  readonly #context: RequestsContext;
  readonly #answers: Answers;
  /** What is said to one session, or to the server, arrives there in the order in which it was said. */
  readonly #lines = new Map<string, Promise<void>>();

  constructor(context: RequestsContext) {
    this.#context = context;
    this.#answers = new Answers(context);
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
        return await this.#answers.list(request);
      case "last":
        return await this.#answers.last(request);
      case "create":
        return await this.#answers.create(request);
    }
    const record = await this.#recordFor(params, scope === "metadata" ? request : undefined);
    if (record === null) return;
    switch (scope) {
      case "resume":
        return await this.#answers.open(request, record, false);
      case "delete":
        return await this.#answers.delete(request, record);
      case "detach":
        return await this.#answers.detach(request, record);
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
    if (!link.own) checkReach(method, params, config);
    this.#forward(link, { ...request, params: this.#decided(link, request) }, record);
  }

  /** Sends a request about a session on; if the session was unloaded meanwhile, it is opened again and the request repeated. */
  #forward(link: Link, request: ClientRequest, record: SessionRecord, again = false): void {
    const { exchange, attachments, unloaded, linkFor } = this.#context;
    exchange.forward(link, request, {
      params: { ...request.params, sessionId: record.id },
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

  /** An approval counts only if it is the user's to give: see {@link decide}. */
  #decided({ own }: Link, { method, params }: ClientRequest): Params {
    if (own || method !== "session.permissions.handlePendingPermissionRequest") return params;
    const attachment = this.#context.attachments.get(String(params.sessionId));
    const decided = decide(params, attachment?.permissions, this.#context.config);
    if (decided !== params) {
      const detail = "an approval that is not this user's to give";
      this.#context.onEvent({ event: "denied", method, sessionId: String(params.sessionId), detail });
    }
    return decided;
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

  /**
   * In a collaborative session whoever is in a turn is alone in it. @throws FleetError `FLEET_SESSION_LOCKED`.
   */
  async #assertFree(record: SessionRecord): Promise<void> {
    const { store, turns } = this.#context;
    if (record.kind === "private" || turns.of(record.id)?.active === true) return;
    const lease = await store.readLease(record.id);
    if (lease !== null) throw sessionLocked(record.id, lease);
  }
}

/** What cannot be an id is in no store, and must not become a path. */
function isUsableId(id: string): boolean {
  return /^[A-Za-z0-9._-]{1,128}$/.test(id) && !/^\.{1,2}$/.test(id);
}
