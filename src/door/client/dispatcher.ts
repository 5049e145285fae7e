import { setTimeout as delay } from "node:timers/promises";
import { type FleetError, isFleetError } from "../../base/errors.js";
import { isSessionId } from "../../base/ids.js";
import type { SessionRecord } from "../../base/session.js";
import { decide, type Identity, permit, relationTo } from "../../identity/identity.js";
import { ProtocolError } from "../../runtime/wire/frames.js";
import { RpcError } from "../../runtime/wire/rpc-client.js";
import { isStoreTrouble } from "../../sessions/problems.js";
import { recordFor } from "../../sessions/view.js";
import type { SessionHandling, UserHandling } from "../policy/methods.js";
import { checkReach, reachOf } from "../policy/reach.js";
import { checkSetup, needsItsClient, refuseSetupElsewhere } from "../policy/settings.js";
import { Relay } from "../routing/relay.js";
import type { Opener, Router } from "../routing/router.js";
import type { ClientState } from "../state/client-state.js";
import type { ServerLink } from "../state/links.js";
import { type DoorEvent, describe, failure } from "../state/report.js";
import type { PromptQueue } from "../turns/prompt-queue.js";
import type { ClientMessage, ClientRequest, Params } from "../wire/client-message.js";
import {
  doorDraining,
  errorFrame,
  methodDenied,
  methodUnknown,
  noSuchSession,
  requestsExhausted,
} from "../wire/refusals.js";
import { checkTools, PassedRequests } from "./passed-requests.js";
import { SessionCalls } from "./session-calls.js";

/** Requests of up to this many bytes are exempt from limits on bytes, so that a client can always cancel its work. */
const SHORT_BYTES = 4 * 1024;
/** The most unanswered requests of a client. A client that sends more and reads no answers would fill the memory. */
const MAX_OPEN_REQUESTS = 10_000;

/** Forwards, answers or refuses each request of one client, according to the method's row in `policy/methods.ts`. */
export class Dispatcher {
  readonly #state: ClientState;
  readonly #router: Router;
  readonly #prompts: PromptQueue;
  readonly #sessionCalls: SessionCalls;
  readonly #passedRequests: PassedRequests;
  readonly #bulkDeletion: BulkDeletion;
  readonly #relay: Relay;

  constructor(state: ClientState, router: Router, opener: Opener, prompts: PromptQueue) {
    this.#state = state;
    this.#router = router;
    this.#prompts = prompts;
    this.#sessionCalls = new SessionCalls(state, opener);
    this.#passedRequests = new PassedRequests(state, router, prompts);
    this.#bulkDeletion = new BulkDeletion(state, router, this.#sessionCalls);
    this.#relay = new Relay(state, router);
    void this.#serveLines();
  }

  take(message: ClientMessage): void {
    const { requests, receipts, socket, report } = this.#state;
    switch (message.kind) {
      case "request":
        if (requests.open >= MAX_OPEN_REQUESTS) {
          throw new ProtocolError(`The connection has more than ${MAX_OPEN_REQUESTS} unanswered requests.`, -32600);
        }
        this.#queue(message.method === "session.resume" ? asViewer(message, this.#state.identity) : message);
        break;
      case "response":
        if (!receipts.take(message.id) && !requests.answered(message))
          report.event({ event: "dropped", detail: "an answer to no open request" });
        break;
      case "unfit":
        socket.send(errorFrame(message.id, message.rpcCode, message.message));
        report.event({ event: "denied", detail: message.message });
        break;
      case "notification":
        // Drop the notification. The protocol defines none for clients, and a server might handle it as a request.
        if (!message.method.startsWith("$/")) report.event({ event: "dropped", detail: "a notification" });
        break;
    }
  }

  #queue(request: ClientRequest): void {
    const { requests, lines, report } = this.#state;
    if (!requests.begin(request)) {
      report.event({ event: "denied", detail: "an id that is in use" });
      return;
    }
    const reached = this.#limitReached(request);
    if (reached !== null) {
      requests.refuse(request, reached);
      report.event({ event: "denied", method: request.method, ...reason(reached) });
      return;
    }
    lines.join(request);
  }

  #limitReached({ method, bytes }: ClientRequest): FleetError | null {
    const { requests, share, protocol, door } = this.#state;
    const { maxFrameBytes } = door.config.serve;
    // The client's unanswered requests together may be as long as the longest allowed frame. Accept any request while
    // no other request is unanswered, because one frame alone may be that long.
    const isTooMuch = requests.openBytes > maxFrameBytes && requests.openBytes > bytes;
    if (isTooMuch && bytes > SHORT_BYTES) return requestsExhausted(maxFrameBytes);
    const handling = protocol.handlingOf(method);
    // A user who has reached a limit must be able to cancel work.
    if (handling.about === "session" && handling.cancels === true) return null;
    return share.overRequests ?? (bytes > SHORT_BYTES ? share.overBytes : null);
  }

  /** Never rejects. */
  async #serveLines(): Promise<void> {
    const { unserved } = this.#state.lines;
    for (let name = await unserved.take(); name !== undefined; name = await unserved.take()) void this.#serve(name);
  }

  /** Never rejects. */
  async #serve(name: string): Promise<void> {
    const { lines, gone } = this.#state;
    for (let next = lines.next(name); next !== undefined; next = lines.next(name)) {
      const pauseMs = next.notBefore - performance.now();
      if (pauseMs > 0) await delay(pauseMs, undefined, { signal: gone }).catch(() => "the client has gone");
      if (pauseMs > 0 && gone.aborted) continue;
      if (!lines.isOvertaking(next.request)) await this.#judge(next.request);
    }
  }

  /** Never rejects. */
  async #judge(request: ClientRequest): Promise<void> {
    const { requests, report } = this.#state;
    const { method, params } = request;
    try {
      await this.#route(request);
    } catch (error) {
      if (!requests.refuse(request, error) || error instanceof RpcError) return;
      const why = isFleetError(error) ? reason(error) : ({ code: "FLEET_INTERNAL" } as const);
      const named = typeof params.sessionId === "string" ? { sessionId: params.sessionId.slice(0, 128) } : {};
      const bug = isFleetError(error) ? {} : { detail: describe(error) };
      report.event({ event: isFleetError(error) ? "denied" : "failed", method, ...why, ...named, ...bug });
    }
  }

  async #route(request: ClientRequest): Promise<void> {
    const { protocol, requests, door } = this.#state;
    const handling = protocol.handlingOf(request.method);
    if (handling.paced === true) await door.pace.pass();
    if (handling.about === "session") return await this.#routeToSession(handling, request);
    if (handling.about === "user") return await this.#routeHome(handling, request);
    const { method } = request;
    if (handling.handler === "foreground") return requests.reply(request, foregroundOf(request));
    // A bare server whose gate for spawning is closed gives the same answer.
    if (method === "agentRegistry.spawn") throw methodUnknown(method);
    throw protocol.isKnownMethod(method) ? methodDenied(method, protocol.whyRefused(method)) : methodUnknown(method);
  }

  async #routeHome(handling: UserHandling, request: ClientRequest): Promise<void> {
    const { handler } = handling;
    const { method } = request;
    const { identity, protocol } = this.#state;
    permit(identity, protocol.actionOf(handling), "none", method);
    const host = await this.#router.homeHost();
    if (host !== null && handler === "setUp") refuseSetupElsewhere(method);
    if (host !== null) return this.#relay.home(await this.#router.peer(host), request);
    if (handler === "create") return await this.#sessionCalls.create(request);
    // Start the home server only now, because requests for another host and refused `create` requests do not need it.
    const link = await this.#router.homeHere();
    if (handling.own === true) {
      if (!link.own) throw methodDenied(method, "it affects the whole server, which other users share");
      checkReach(request, handling, reachOf(link, this.#state.door.config));
    }
    switch (handler) {
      case "list":
        return await this.#sessionCalls.list(link, request);
      case "last":
        return await this.#sessionCalls.last(link, request);
      case "setUp":
        return this.#setUp(link, request);
      case "deleteMany":
        return await this.#bulkDeletion.delete(link, request);
      case "prune":
        return await this.#bulkDeletion.prune(link, request);
      case "pass":
        return this.#state.requests.forward(link, request);
    }
  }

  /**
   * Forwards a request that sets up the whole server. If the server accepts it, the client's connection ends when the
   * server ends, because the next launch does not have these settings.
   */
  #setUp(link: ServerLink, request: ClientRequest): void {
    const state = this.#state;
    checkSetup(request.method, link, state.door.config);
    state.requests.forward(link, request, {
      onAnswer: ({ failed }): undefined => {
        if (failed) return;
        state.boundTo = link;
        if (needsItsClient(request.method)) state.needing = link.server;
      },
    });
  }

  async #routeToSession(handling: SessionHandling, request: ClientRequest): Promise<void> {
    const { door, requests, lines } = this.#state;
    const { handler, cancels } = handling;
    const record = await this.#recordFor(handling, request);
    if (record === null) return;
    if (handler === "detach") return await this.#sessionCalls.detach(request, record);
    if (handler === "send" && door.draining) throw doorDraining();
    // If earlier prompts of the client wait, put this prompt behind them without looking for the session's host.
    // Otherwise this prompt could overtake them if the session has just moved to another host.
    if (handler === "send" && this.#prompts.waits(record.id)) return await this.#prompts.send(request, record);
    if (cancels === true && this.#prompts.cancel(record.id)) return requests.reply(request, { success: true });
    const host = await this.#router.hostOf(record);
    // If the session is now on another host, wait until this host has sent or refused the client's earlier prompts. A
    // refused prompt returns to its place in the line, ahead of this request. In that case, `isOvertaking` puts this
    // request back behind it, and returns true.
    if (host !== null) await this.#prompts.sent(record.id);
    if (lines.isOvertaking(request)) return;
    if (host !== null) return await this.#relay.session(handling, host, request, record);
    switch (handler) {
      case "open":
        checkTools(this.#state, request, record);
        return await this.#sessionCalls.open(request, record, false);
      case "delete":
        return await this.#sessionCalls.delete(request, record);
      case "send":
        return await this.#prompts.send(request, record);
      case "pass":
        return await this.#passedRequests.pass(handling, request, record);
    }
  }

  /**
   * @returns the record of a session that the user may use. Null if there is no such session and this method has
   * answered the request.
   */
  async #recordFor(handling: SessionHandling, request: ClientRequest): Promise<SessionRecord | null> {
    const { identity, protocol, requests, report } = this.#state;
    const { method, params } = request;
    const { sessionId } = params;
    const record = await this.#found(sessionId);
    if (permit(identity, protocol.actionOf(handling), relationTo(identity, record), method)) return record;
    const { missing } = handling;
    if (typeof sessionId !== "string" || missing === undefined) throw noSuchSession(String(sessionId));
    report.event({ event: "denied", method, sessionId: sessionId.slice(0, 128), code: "FLEET_SESSION_NOT_FOUND" });
    // Forget the deleted session, because the client may still have it open.
    this.#state.left(sessionId);
    requests.reply(request, missing(sessionId));
    return null;
  }

  async #found(sessionId: unknown): Promise<SessionRecord | null> {
    // Do not look up a malformed id, because the file store would build a path from it.
    if (typeof sessionId !== "string" || !isSessionId(sessionId)) return null;
    const { door, user } = this.#state;
    return await recordFor(door, sessionId, user).catch((error: unknown) => {
      if (!isFleetError(error, "FLEET_SESSION_NOT_FOUND")) throw error;
      return null;
    });
  }
}

function reason({ code, limit }: FleetError): Pick<DoorEvent, "code" | "limit"> {
  return limit === undefined ? { code } : { code, limit };
}

/** The answer of a headless runtime, which has no foreground session (measured with 1.0.85). */
function foregroundOf({ method, params }: ClientRequest): object {
  if (method === "session.getForeground") return {};
  const error = `Not running in TUI+server mode - cannot set foreground session ${String(params.sessionId)}`;
  return { success: false, error };
}

/** The runtime's error code for a parameter that is missing or has the wrong type (measured with 1.0.85). */
const INTERNAL_ERROR = -32603;

/**
 * Deletes many sessions of a user in one request. The door handles each session like a `session.delete`, because the
 * server neither checks who may delete a session nor deletes its record. The answers have the shape of a bare server's
 * answers.
 */
class BulkDeletion {
  readonly #state: ClientState;
  readonly #router: Router;
  readonly #sessionCalls: SessionCalls;

  constructor(state: ClientState, router: Router, sessionCalls: SessionCalls) {
    this.#state = state;
    this.#router = router;
    this.#sessionCalls = sessionCalls;
  }

  /** `sessions.bulkDelete`. Like a bare server's answer, the answer omits the sessions that could not be deleted. */
  async delete(link: ServerLink, request: ClientRequest): Promise<void> {
    const { sessionIds } = request.params;
    if (!Array.isArray(sessionIds)) throw invalid(request, "missing or non-array parameter 'sessionIds'");
    const odd = sessionIds.find((id) => typeof id !== "string" || !isSessionId(id));
    if (odd !== undefined) throw invalid(request, `Invalid sessionId: ${JSON.stringify(odd)}`);
    const freedBytes = await this.#deleteAll(link, request, sessionIds as string[]);
    this.#state.requests.reply(request, { freedBytes });
  }

  /** `sessions.pruneOld`. The server only lists the sessions that are old enough, and the door deletes them. */
  async prune(link: ServerLink, request: ClientRequest): Promise<void> {
    const { upstream } = link;
    const plan = (await upstream.ask(request.method, { ...request.params, dryRun: true })) as PruneResult;
    const { requests } = this.#state;
    if (request.params.dryRun === true) return requests.reply(request, plan);
    const freed = await this.#deleteAll(link, request, plan.candidates);
    const kept = plan.candidates.filter((id) => freed[id] === undefined);
    const result: PruneResult = {
      deleted: Object.keys(freed),
      candidates: [],
      skipped: [...plan.skipped, ...kept],
      freedBytes: Object.values(freed).reduce((sum, bytes) => sum + bytes, 0),
      dryRun: false,
    };
    requests.reply(request, result);
  }

  /** @returns the freed bytes for each session id, without the sessions that still exist */
  async #deleteAll(link: ServerLink, { method }: ClientRequest, ids: string[]): Promise<Record<string, number>> {
    const { sizes } = (await link.upstream.ask("sessions.getSizes", {})) as { sizes: Record<string, number> };
    const freed: Record<string, number> = {};
    for (const sessionId of new Set(ids)) {
      try {
        const outcome = await this.#delete(sessionId);
        if (outcome !== "kept") freed[sessionId] = outcome === "deleted" ? (sizes[sessionId] ?? 0) : 0;
      } catch (error) {
        const isAbout = error instanceof RpcError || (isFleetError(error) && !isStoreTrouble(error));
        if (!isAbout) throw error;
        this.#state.report.event({ event: "denied", method, sessionId, ...failure(error) });
      }
    }
    return freed;
  }

  async #delete(sessionId: string): Promise<"deleted" | "kept" | "not found"> {
    const { door, user, attachments } = this.#state;
    const record = await recordFor(door, sessionId, user).catch((error: unknown) => {
      if (isFleetError(error, "FLEET_SESSION_NOT_FOUND")) return null;
      throw error;
    });
    if (record === null) return "not found";
    const host = await this.#router.hostOf(record);
    if (host === null) await this.#sessionCalls.deleteHere("session.delete", record);
    else {
      const { upstream } = await this.#router.peer(host);
      await upstream.ask("session.delete", { sessionId });
      attachments.delete(sessionId);
    }
    // If the client chose the session's folder (`configDirectory`), the server may have deleted nothing. The record
    // then still exists.
    return (await door.store.sessions.read(sessionId)) === null ? "deleted" : "kept";
  }
}

interface PruneResult extends Params {
  deleted: string[];
  candidates: string[];
  skipped: string[];
  freedBytes: number;
  dryRun: boolean;
}

function invalid({ method }: ClientRequest, why: string): RpcError {
  return new RpcError(`Request ${method} failed with message: ${why}`, INTERNAL_ERROR);
}

/**
 * Replaces the `session.resume` of a client that may only read. The new request has no settings, because a client's
 * tools, hooks, instructions and model affect the session's turns. It adds no event to the session's history
 * (`disableResume`). It asks for streaming, because otherwise the runtime (1.0.85) stops streaming to the session's
 * other clients.
 */
function asViewer(request: ClientRequest, identity: Identity): ClientRequest {
  if (decide(identity, "use", "none") === "allowed") return request;
  const { sessionId, clientName } = request.params;
  return { ...request, params: { sessionId, clientName, streaming: true, disableResume: true } };
}
