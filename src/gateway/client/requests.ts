import { setTimeout as delay } from "node:timers/promises";
import { type FleetError, isFleetError } from "../../errors.js";
import type { TokenHolder } from "../../identity/tokens.js";
import { isSessionId } from "../../model/ids.js";
import type { ServerRecord } from "../../model/server.js";
import type { SessionRecord } from "../../model/session.js";
import { readSessionFolder } from "../../runtime/history/session-state.js";
import { RpcError } from "../../runtime/wire/rpc-client.js";
import { isStoreTrouble, sessionLocked } from "../../sessions/problems.js";
import { checkMember, toolsIn } from "../policy/members.js";
import type { Scope } from "../policy/methods.js";
import type { Protocol } from "../policy/protocols.js";
import { checkReach, decide, reachesHost } from "../policy/reach.js";
import { checkSetup, needsItsClient, refuseSetupElsewhere } from "../policy/server-setup.js";
import { isMoved, Relay } from "../routing/relay.js";
import type { Routes } from "../routing/routes.js";
import { ownTools, saysUnloaded } from "../state/attachments.js";
import type { DoorEvent } from "../state/door/report.js";
import { describe, failure } from "../state/door/report.js";
import { isAnswer, type SessionRequests } from "../state/door/server-questions.js";
import type { Share } from "../state/door/shares.js";
import type { ServerLink } from "../state/links.js";
import type { Turns } from "../turns/turns.js";
import type { ClientRequest, Params } from "../wire/client-message.js";
import {
  doorDraining,
  hostDenied,
  methodDenied,
  methodUnknown,
  noSuchSession,
  requestsExhausted,
} from "../wire/refusals.js";
import { Answers, type AnswersContext } from "./answers.js";
import { BulkDeletion } from "./bulk-deletion.js";

export interface RequestsContext extends AnswersContext {
  /** The client's protocol. Its table of methods decides on each request. */
  protocol: Protocol;
  turns: Turns;
  /** The client's part of its user's limits. */
  share: Share;
  /** The lease that the client brought, if it brought one. */
  lease: TokenHolder["lease"];
  routes: Routes;
  sessionRequests: SessionRequests;
  /** The users of other clients that brought a tool with this name to the session. */
  bringers: (sessionId: string, tool: string) => string[];
  unloaded: (sessionId: string) => void;
  /** Ends the client's connection when this link ends. With `needsItsClient`, the server also ends with the connection. */
  boundTo: (link: ServerLink, needsItsClient: boolean) => void;
  /** Resolves when the next prompt or opening may begin. */
  pace: () => Promise<void>;
  isDraining: () => boolean;
  /**
   * Whether another host relays this client. When its session or user has moved, it gets an error, and this host does
   * not look again.
   */
  relayed: boolean;
  onEvent: (event: Omit<DoorEvent, "address" | "user">) => void;
  /** Aborts when the client has gone. */
  signal: AbortSignal;
}

/** Requests up to this size are accepted even if much is waiting, so that a client can always cancel its work. */
const SHORT_BYTES = 4 * 1024;

/** The answers of a bare server for a session that does not exist, for methods that do not fail in that case. */
const WITHOUT_SESSION: Record<string, (sessionId: string) => object> = {
  "session.getMetadata": () => ({}),
  "sessions.getMetadata": () => ({}),
  "session.detach": () => ({ success: true }),
  "session.destroy": () => ({ success: true }),
  "session.delete": (sessionId) => ({ success: false, error: `Session file not found for ${sessionId}` }),
};

/** How long to wait before each new search for a session or user that has moved, in milliseconds. */
const LOOK_AGAIN_MS = [100, 1_000];

/** A request that waits in line with others for the same session. */
interface Visit {
  readonly request: ClientRequest;
  readonly line: string;
  /** Its position in the order in which the client's requests came. */
  readonly place: number;
  /** How many times the fleet looked for its session or user again. */
  looks: number;
  /** The time before which the fleet does not look again, by `performance.now()`. */
  notBefore: number;
}

/** The requests of one client. Each is checked against the table of methods, and then sent on, answered or refused. */
export class Requests {
  readonly #context: RequestsContext;
  readonly #answers: Answers;
  readonly #bulkDeletion: BulkDeletion;
  readonly #relay: Relay;
  readonly #visits = new WeakMap<ClientRequest, Visit>();
  /**
   * The queues of requests: one for each session, and one for requests without a session. Each keeps the order in which
   * the client sent the requests.
   */
  readonly #lines = new Map<string, Visit[]>();
  #places = 0;

  constructor(context: RequestsContext) {
    this.#context = context;
    this.#answers = new Answers(context);
    this.#bulkDeletion = new BulkDeletion(context, this.#answers);
    this.#relay = new Relay({ ...context, again: (request) => this.#again(request) });
  }

  take(request: ClientRequest): void {
    const { openRequests } = this.#context;
    if (!openRequests.begin(request)) {
      this.#context.onEvent({ event: "denied", detail: "an id that is in use" });
      return;
    }
    const { maxFrameBytes } = this.#context.config.serve;
    // A single request may be as long as a frame may be. All requests that wait together have the same limit.
    const isTooMuch = openRequests.openBytes > maxFrameBytes && openRequests.openBytes > request.bytes;
    if (isTooMuch && request.bytes > SHORT_BYTES) {
      const { method } = request;
      openRequests.refuse(request, requestsExhausted(maxFrameBytes));
      this.#context.onEvent({ event: "denied", method, code: "FLEET_REQUESTS_EXHAUSTED" });
      return;
    }
    const reached = this.#limitReached(request);
    if (reached !== null) {
      const { method } = request;
      openRequests.refuse(request, reached);
      this.#context.onEvent({ event: "denied", method, ...reason(reached) });
      return;
    }
    const { sessionId } = request.params;
    const place = this.#places++;
    // A session that gets its id here does not have to wait for other requests, and opening it may take a while.
    const isAlone = request.method === "session.create" && typeof sessionId !== "string";
    const line = isAlone ? `new ${place}` : typeof sessionId === "string" ? sessionId : "";
    const visit = { request, line, place, looks: 0, notBefore: 0 };
    this.#visits.set(request, visit);
    this.#queue(visit);
  }

  #limitReached({ method, bytes }: ClientRequest): FleetError | null {
    const { share } = this.#context;
    // A user at a limit must be able to cancel work.
    if (method === "session.abort") return null;
    return share.overRequests ?? (bytes > SHORT_BYTES ? share.overBytes : null);
  }

  /** Inserts a request behind those that arrived before it, even if it is queued for the second time. */
  #queue(visit: Visit): void {
    const waiting = this.#lines.get(visit.line);
    if (waiting !== undefined) {
      const behind = waiting.findIndex(({ place }) => place > visit.place);
      waiting.splice(behind === -1 ? waiting.length : behind, 0, visit);
      return;
    }
    const line = [visit];
    this.#lines.set(visit.line, line);
    void this.#serve(visit.line, line);
  }

  /** Whether an earlier request has come back to the queue. If so, inserts this one behind it. */
  #isOvertaking(request: ClientRequest): boolean {
    const visit = this.#visits.get(request);
    const first = visit && this.#lines.get(visit.line)?.[0];
    if (visit === undefined || first === undefined || first.place > visit.place) return false;
    this.#queue(visit);
    return true;
  }

  /** Never rejects. */
  async #serve(name: string, waiting: Visit[]): Promise<void> {
    const { signal } = this.#context;
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      const pauseMs = next.notBefore - performance.now();
      if (pauseMs > 0) await delay(pauseMs, undefined, { signal }).catch(() => "the client has gone");
      if (pauseMs > 0 && signal.aborted) continue;
      if (!this.#isOvertaking(next.request)) await this.#judge(next.request);
    }
    this.#lines.delete(name);
  }

  /** Refuses a request. If its session or user has moved to another host, looks for it again instead. */
  refuse(request: ClientRequest, error: unknown): void {
    if (isMoved(error) && this.#again(request)) return;
    const { openRequests } = this.#context;
    if (error instanceof RpcError) openRequests.fail(request, error);
    else openRequests.refuse(request, error);
  }

  /** @returns false after the last attempt: the client then gets the error. */
  #again(request: ClientRequest): boolean {
    const visit = this.#visits.get(request);
    const pauseMs = LOOK_AGAIN_MS[visit?.looks ?? LOOK_AGAIN_MS.length];
    if (this.#context.relayed || visit === undefined || pauseMs === undefined) return false;
    visit.looks++;
    visit.notBefore = performance.now() + pauseMs;
    this.#queue(visit);
    return true;
  }

  /** Never rejects. */
  async #judge(request: ClientRequest): Promise<void> {
    const { openRequests, onEvent } = this.#context;
    const { method, params } = request;
    try {
      await this.#route(this.#context.protocol.scopeOf(method), request);
    } catch (error) {
      if (isMoved(error) && this.#again(request)) return;
      if (error instanceof RpcError) {
        openRequests.fail(request, error);
        return;
      }
      openRequests.refuse(request, error);
      const why = isFleetError(error) ? reason(error) : ({ code: "FLEET_INTERNAL" } as const);
      const named = typeof params.sessionId === "string" ? { sessionId: params.sessionId.slice(0, 128) } : {};
      const bug = isFleetError(error) ? {} : { detail: describe(error) };
      onEvent({ event: isFleetError(error) ? "denied" : "failed", method, ...why, ...named, ...bug });
    }
  }

  async #route(scope: Scope, request: ClientRequest): Promise<void> {
    const { method } = request;
    if (scope === "send" || scope === "resume" || scope === "create") await this.#context.pace();
    switch (scope) {
      case "connect":
      case "never":
        throw this.#refusalOf(method);
      case "foreground":
        return this.#context.openRequests.reply(request, foregroundOf(request));
      case "free":
      case "own":
      case "own-host":
      case "setup":
      case "bulk":
      case "list":
      case "last":
      case "create":
        return await this.#routeHome(scope, request);
    }
    const record = await this.#recordFor(request);
    if (record === null) return;
    if (scope === "detach") return await this.#answers.detach(request, record);
    if (scope === "send" && this.#context.isDraining()) throw doorDraining();
    // Let this prompt wait behind the client's earlier ones before looking for the session's host, so that they stay in
    // order even if the session moves.
    if (scope === "send" && this.#context.turns.waits(record.id))
      return await this.#context.turns.send(request, record);
    if (method === "session.abort" && this.#context.turns.cancel(record.id)) {
      return this.#context.openRequests.reply(request, { success: true });
    }
    const host = await this.#context.routes.hostOf(record);
    if (this.#isOvertaking(request)) return;
    if (host !== null) await this.#relay.session(scope, host, request, record);
    else await this.#routeHere(scope, request, record);
  }

  #refusalOf(method: string): FleetError {
    const { protocol } = this.#context;
    return protocol.isKnownMethod(method) ? methodDenied(method, protocol.whyRefused(method)) : methodUnknown(method);
  }

  /** Routes a request that is not about a session, or that creates one, to the user's home. */
  async #routeHome(
    scope: "free" | "own" | "own-host" | "setup" | "bulk" | "list" | "last" | "create",
    request: ClientRequest,
  ): Promise<void> {
    const { openRequests, routes } = this.#context;
    // Do this before the home server is started, because creating a session may be refused.
    const host = await routes.homeHost();
    if (host !== null && scope === "setup") refuseSetupElsewhere(request.method);
    if (host !== null) return this.#relay.home(await routes.peer(host), request);
    if (scope === "create") return await this.#answers.create(request);
    const link = await routes.homeHere();
    switch (scope) {
      case "list":
        return await this.#answers.list(link, request);
      case "last":
        return await this.#answers.last(link, request);
      case "own":
      case "own-host":
      case "bulk":
        if (!link.own) throw methodDenied(request.method, "it affects the whole server, which other users share");
        this.#checkReach(scope, request, link);
        break;
      case "setup":
        return this.#setUp(link, request);
    }
    if (request.method === "sessions.bulkDelete") return await this.#bulkDeletion.delete(link, request);
    if (request.method === "sessions.pruneOld") return await this.#bulkDeletion.prune(link, request);
    openRequests.forward(link, request);
  }

  #setUp(link: ServerLink, request: ClientRequest): void {
    const { openRequests, config, boundTo } = this.#context;
    checkSetup(request.method, link.server, link.own, config);
    openRequests.forward(link, request, {
      onAnswer: ({ failed }) => {
        if (!failed) boundTo(link, needsItsClient(request.method));
        return undefined;
      },
    });
  }

  async #routeHere(scope: Scope, request: ClientRequest, record: SessionRecord): Promise<void> {
    const { method, params } = request;
    switch (scope) {
      case "resume":
        this.#checkTools(request, record);
        return await this.#answers.open(request, record, false);
      case "delete":
        return await this.#answers.delete(request, record);
      case "send":
        return await this.#context.turns.send(request, record);
      case "steer":
        await this.#context.turns.sent(record.id);
        await this.#assertFree(record);
        break;
      case "home":
      case "approve":
      case "host":
        await this.#assertFree(record);
        break;
      case "queue":
        if (record.kind === "collaborative" && this.#context.turns.of(record.id)?.active !== true) {
          throw methodDenied(
            method,
            "in a collaborative session, a client may queue prompts only during its own turn (session.send)",
          );
        }
        break;
      case "work":
        if (record.kind === "collaborative") {
          throw methodDenied(method, "in a collaborative session, the model works only in turns (session.send)");
        }
        break;
    }
    if (method === "sessions.fork") await this.#context.sessions.assertRoom(this.#context.user);
    const link = await this.#context.routes.local(record);
    if ((scope === "home" || scope === "approve" || scope === "host") && !link.own) {
      throw methodDenied(method, "it reaches beyond the session, on a server that other users share");
    }
    const { config } = this.#context;
    if (scope === "options") {
      const member = record.owner !== this.#context.user;
      link.protocol.checkOptions(method, params, { own: link.own, member, isolation: link.server.isolation, config });
    }
    this.#checkReach(scope, request, link);
    this.#checkTools(request, record);
    this.#checkAnswer(link, request, record);
    const decided = this.#decided(link, request, record);
    // The approval was for another client's tool: answer as if that client had answered first.
    if (decided === null) return this.#context.openRequests.reply(request, { success: false });
    this.#forward(link, { ...request, params: decided }, record);
  }

  #checkReach(scope: Scope, { method, params }: ClientRequest, { own }: ServerLink): void {
    const { config, protocol } = this.#context;
    const isHost = scope === "host" || scope === "own-host";
    if (isHost && !reachesHost({ own, config })) throw hostDenied(method, "it reaches files or programs");
    checkReach(method, params, { own, config }, protocol);
  }

  /**
   * Keeps members from replacing the tools of other users.
   *
   * @throws FleetError `FLEET_METHOD_DENIED`.
   */
  #checkTools({ method, params }: ClientRequest, record: SessionRecord): void {
    const { user, bringers } = this.#context;
    if (record.owner === user) return;
    checkMember(method, params);
    if (method !== "session.resume" && method !== "session.tools.set") return;
    const taken = toolsIn(params).find(({ name }) => bringers(record.id, String(name)).some((other) => other !== user));
    if (taken === undefined) return;
    throw methodDenied(
      method,
      `another user's client already provides the tool ${JSON.stringify(taken.name)} in this session`,
    );
  }

  /**
   * Refuses answers to requests of other sessions, in collaborative sessions and on servers with other users. The runtime
   * does not: it accepts an answer from every client that knows the request's id.
   *
   * @throws FleetError `FLEET_METHOD_DENIED` for a request of another session, and for a call of another client's tool.
   */
  #checkAnswer({ own }: ServerLink, { method, params }: ClientRequest, record: SessionRecord): void {
    if (!isAnswer(method)) return;
    const asked = this.#context.sessionRequests.get(record.id, params.requestId);
    const isCollaborative = record.kind === "collaborative";
    if (asked === undefined && (isCollaborative || !own))
      throw methodDenied(method, "this session has not asked for anything under that requestId");
    if (isCollaborative && asked?.tool !== undefined && !this.#answersFor(asked.tool, record))
      throw methodDenied(method, "only the client that provides a tool may answer its calls");
  }

  /**
   * Whether this client may answer for a tool of a collaborative session. The client that brought the tool may, and the
   * owner's client takes precedence over a member's. If no client has the tool, the owner's client may, because it has
   * connected again.
   */
  #answersFor(tool: string, { id, owner }: SessionRecord): boolean {
    const { user, bringers, attachments } = this.#context;
    const others = bringers(id, tool);
    const attachment = attachments.get(id);
    const brings = attachment !== undefined && ownTools(attachment).has(tool);
    return brings ? user === owner || !others.includes(owner) : user === owner && others.length === 0;
  }

  /**
   * Sends on a request about a session. If the server has unloaded the session, opens it again and repeats the request.
   */
  #forward(link: ServerLink, request: ClientRequest, record: SessionRecord, again = false): void {
    const { openRequests, attachments, unloaded, routes } = this.#context;
    openRequests.forward(link, request, {
      params: { ...request.params, sessionId: record.id },
      onAnswer: ({ failed, body }) => {
        const finish = failed ? undefined : this.#finishing(request.method);
        if (finish !== undefined) {
          finish(request, link, resultIn(body)).then(
            (result) => openRequests.reply(request, result),
            (error: unknown) => this.refuse(request, error),
          );
          return "hold";
        }
        if (again || !failed || !attachments.has(record.id) || !saysUnloaded(body)) return undefined;
        unloaded(record.id);
        routes.local(record).then(
          (reopened) => this.#forward(reopened, request, record, true),
          (error: unknown) => this.refuse(request, error),
        );
        return "hold";
      },
    });
  }

  /** The work that is left before the client gets the answer to this method. It resolves with the answer's result. */
  #finishing(method: string): Finishing | undefined {
    switch (method) {
      // The runtime keeps a session that was shut down in memory until every client has left it. In that state it
      // accepts prompts without ever answering them, and cannot resume the session (measured with 1.0.85). After this
      // close, the next client to use the session opens it again.
      case "session.shutdown":
        return async ({ params }, { upstream }, result) => {
          await upstream.ask("sessions.close", { sessionId: params.sessionId });
          return result;
        };
      // Keep the tools, because the session gets them again when it is opened again.
      case "session.tools.set":
        return async ({ params: { sessionId, tools } }, _link, result) => {
          const attachment = this.#context.attachments.get(String(sessionId));
          if (attachment !== undefined) attachment.asked = { ...attachment.asked, tools };
          return await Promise.resolve(result);
        };
      // Record the new session right now, so that other hosts find it. Count a turn, so that no host takes it for a
      // session without a history.
      case "sessions.fork":
        return async ({ method }, { server }, result) => {
          const sessionId = String((result as { sessionId?: unknown }).sessionId);
          await this.#recordFork(sessionId, server).catch((error: unknown) => {
            // The fork exists, and is recorded when it is first used here.
            if (!isStoreTrouble(error)) throw error;
            this.#context.onEvent({ event: "failed", method, sessionId, ...failure(error) });
          });
          return result;
        };
    }
    return undefined;
  }

  async #recordFork(sessionId: string, server: ServerRecord): Promise<void> {
    const { sessions, store, user } = this.#context;
    const { id } = await sessions.recordFor(sessionId, user);
    if (readSessionFolder(server.home, id)?.hasHistory !== true) return;
    await store.sessions.update(id, (draft) => {
      draft.turns ||= 1;
    });
  }

  /** Removes an approval that this user may not give: see {@link decide}. */
  #decided({ own }: ServerLink, { method, params }: ClientRequest, record: SessionRecord): Params | null {
    if (method !== "session.permissions.handlePendingPermissionRequest") return params;
    const { config, attachments, sessionRequests } = this.#context;
    const asked = sessionRequests.get(record.id, params.requestId);
    const isCollaborative = record.kind === "collaborative";
    const attachment = attachments.get(record.id);
    const isOwnTool =
      asked?.tool !== undefined &&
      (isCollaborative
        ? this.#answersFor(asked.tool, record)
        : attachment !== undefined && ownTools(attachment).has(asked.tool));
    const decided = decide(params, { asked, isOwnTool, isCollaborative }, { own, config });
    if (decided !== params) {
      const detail = "an approval that this user may not give";
      this.#context.onEvent({ event: "denied", method, sessionId: String(params.sessionId), detail });
    }
    return decided;
  }

  /** The record of a session that the user may use. Null if there is none and the client has its answer. */
  async #recordFor(request: ClientRequest): Promise<SessionRecord | null> {
    const { sessions, user, openRequests, attachments, left, onEvent } = this.#context;
    const { method, params } = request;
    const { sessionId } = params;
    if (typeof sessionId !== "string") throw noSuchSession(String(sessionId));
    try {
      // A string that cannot be an id is not in the store, and must not become a path.
      if (isSessionId(sessionId)) return await sessions.recordFor(sessionId, user);
    } catch (error) {
      if (!isFleetError(error, "FLEET_SESSION_NOT_FOUND")) throw error;
    }
    const answer = WITHOUT_SESSION[method];
    if (answer === undefined) throw noSuchSession(sessionId);
    onEvent({ event: "denied", method, sessionId: sessionId.slice(0, 128), code: "FLEET_SESSION_NOT_FOUND" });
    // The session was deleted, but may still be open here.
    attachments.delete(sessionId);
    left(sessionId);
    openRequests.reply(request, answer(sessionId));
    return null;
  }

  /**
   * Refuses a request in a collaborative session while another client is in a turn or holds the lease.
   *
   * @throws FleetError `FLEET_SESSION_LOCKED`.
   */
  async #assertFree(record: SessionRecord): Promise<void> {
    const { store, turns, lease: own } = this.#context;
    if (record.kind === "private" || turns.of(record.id)?.active === true) return;
    const lease = await store.leases.read(record.id);
    const isOwn = own?.sessionId === record.id && own.fence === lease?.fence;
    if (lease !== null && !isOwn) throw sessionLocked(record.id, lease);
  }
}

/** The fields of an event that describe a refusal. */
function reason({ code, limit }: FleetError): Pick<DoorEvent, "code" | "limit"> {
  return limit === undefined ? { code } : { code, limit };
}

type Finishing = (request: ClientRequest, link: ServerLink, result: unknown) => Promise<unknown>;

function resultIn(body: Buffer): unknown {
  return (JSON.parse(body.toString("utf8")) as { result?: unknown }).result;
}

/**
 * The runtime always starts headless (`runtime/launch/launch.ts`), without the terminal that has a foreground session
 * (measured with 1.0.85).
 */
function foregroundOf({ method, params }: ClientRequest): object {
  if (method === "session.getForeground") return {};
  const error = `Not running in TUI+server mode - cannot set foreground session ${String(params.sessionId)}`;
  return { success: false, error };
}
