import type { ServerRecord } from "../../base/server.js";
import type { SessionRecord } from "../../base/session.js";
import { creditLimit } from "../../base/usage.js";
import { readSessionFolder } from "../../runtime/history/session-state.js";
import { noteOpened } from "../../sessions/memory/open-notes.js";
import { isStoreTrouble, sessionLocked } from "../../sessions/problems.js";
import { recordFor } from "../../sessions/view.js";
import type { SessionHandling } from "../policy/methods.js";
import {
  approvesMore,
  asksModel,
  checkCredits,
  checkMember,
  checkReach,
  decide,
  mayAskModel,
  reachOf,
  toolsIn,
} from "../policy/reach.js";
import type { Router } from "../routing/router.js";
import type { ClientState } from "../state/client-state.js";
import { isAnswer } from "../state/door-state.js";
import type { ServerLink } from "../state/links.js";
import { failure } from "../state/report.js";
import type { PromptQueue } from "../turns/prompt-queue.js";
import { assertMoreCredits } from "../turns/turn-server.js";
import type { ClientRequest, Params } from "../wire/client-message.js";
import { resultIn, saysUnloaded } from "../wire/events.js";
import { methodDenied } from "../wire/refusals.js";

/** Forwards requests about a session to its server on this host, after the checks that `policy/methods.ts` requires. */
export class PassedRequests {
  readonly #state: ClientState;
  readonly #router: Router;
  readonly #prompts: PromptQueue;

  constructor(state: ClientState, router: Router, prompts: PromptQueue) {
    this.#state = state;
    this.#router = router;
    this.#prompts = prompts;
  }

  async pass(handling: SessionHandling, request: ClientRequest, record: SessionRecord): Promise<void> {
    const { door, user, requests } = this.#state;
    const { method, params } = request;
    const { config } = door;
    await this.#assertAllowedNow(handling, method, record);
    if (handling.finish === "recordFork") await door.sessions.limits.assertRoom(user);
    const link = await this.#router.linkHere(record);
    const { own } = link;
    if (handling.own === true && !own)
      throw methodDenied(method, "it reaches beyond the session, on a server that other users share");
    if (handling.checksOptions === true) {
      const member = record.owner !== user;
      const { isolation } = link.server;
      link.protocol.checkOptions(method, params, { ...reachOf(link, config), member, isolation });
      // This takes the fleet's provider from the session. So the next turn has to give it again.
      if (params.provider === null) noteOpened(link.server, record.id);
    }
    checkCredits(method, params, config);
    checkReach(request, handling, reachOf(link, config));
    checkTools(this.#state, request, record);
    checkAnswer(this.#state, link, request, record);
    if (asksModel(method) && creditLimit(config) !== null) {
      await assertMoreCredits(config, link, record);
      // Check again, because somebody else may have begun a turn while the server counted the credits.
      await this.#assertAllowedNow(handling, method, record);
    }
    if (mayAskModel(method)) door.sessions.context.provider.expectRequests(record.id);
    const allowed = handling.permits === true ? permitted(this.#state, link, request, record) : params;
    if (allowed !== null && (handling.approves === true || (handling.permits === true && approvesMore(allowed)))) {
      const attachment = this.#state.attachments.get(record.id);
      if (attachment !== undefined) attachment.approves = true;
    }
    // Only the client that provided the tool may approve it. Reply to this client as the runtime replies to an answer
    // that comes too late.
    if (allowed === null) requests.reply(request, { success: false });
    else this.#forward(handling, link, { ...request, params: allowed }, record);
  }

  /**
   * Refuses a request that the rules of collaborative sessions do not allow now. A request that steers a turn first
   * waits until the client's earlier prompts have been sent.
   *
   * @throws FleetError `FLEET_METHOD_DENIED`; `FLEET_SESSION_LOCKED` while another client is in a turn or has the
   * lease.
   */
  async #assertAllowedNow({ collaborative }: SessionHandling, method: string, record: SessionRecord): Promise<void> {
    if (collaborative === "steer") await this.#prompts.sent(record.id);
    if (record.kind !== "collaborative" || collaborative === undefined) return;
    if (collaborative === "never")
      throw methodDenied(method, "in a collaborative session, the model works only in turns (session.send)");
    if (this.#state.turns.get(record.id)?.active === true) return;
    if (collaborative === "own turn") {
      const rule = "a client may queue prompts only during its own turn (session.send)";
      throw methodDenied(method, `in a collaborative session, ${rule}`);
    }
    const { door, identity } = this.#state;
    const { id } = record;
    const lease = await door.store.leases.read(id);
    const isOwn = identity.lease?.sessionId === id && identity.lease.fence === lease?.fence;
    if (lease !== null && !isOwn) throw sessionLocked(id, lease);
  }

  /** Passes a request on. If the server has unloaded the session, opens the session again and repeats the request. */
  #forward(
    handling: SessionHandling,
    link: ServerLink,
    request: ClientRequest,
    record: SessionRecord,
    again = false,
  ): void {
    const { requests, attachments } = this.#state;
    const { finish } = handling;
    requests.forward(link, request, {
      params: { ...request.params, sessionId: record.id },
      onAnswer: ({ failed, body }) => {
        if (!failed && finish !== undefined) {
          this.#finish(finish, link, request, resultIn(body)).then(
            (result) => requests.reply(request, result),
            (error: unknown) => requests.refuse(request, error),
          );
          return "hold";
        }
        if (again || !failed || !attachments.has(record.id) || !saysUnloaded(body)) return undefined;
        this.#state.unloaded(record.id);
        this.#router.linkHere(record).then(
          (reopened) => this.#forward(handling, reopened, request, record, true),
          (error: unknown) => requests.refuse(request, error),
        );
        return "hold";
      },
    });
  }

  /** Does the work that the method still needs after the server's answer. @returns the result that the client gets */
  async #finish(
    finish: NonNullable<SessionHandling["finish"]>,
    { upstream, server }: ServerLink,
    { method, params }: ClientRequest,
    result: unknown,
  ): Promise<unknown> {
    const { sessionId, tools } = params;
    switch (finish) {
      // After a shutdown, the runtime keeps the session in memory until every client has left it. Such a session
      // accepts prompts but never answers them, and cannot be resumed (measured with 1.0.85). Close the session, so
      // that the next client can open it.
      case "unload":
        await upstream.ask("sessions.close", { sessionId });
        break;
      // Record the tools, so that the door sends them again when it reopens the session for this client.
      case "keepTools": {
        const attachment = this.#state.attachments.get(String(sessionId));
        if (attachment !== undefined) attachment.asked = { ...attachment.asked, tools };
        break;
      }
      // Record the new session now, so that other hosts find it.
      case "recordFork": {
        const forkId = String((result as { sessionId?: unknown }).sessionId);
        await this.#recordFork(forkId, server).catch((error: unknown) => {
          // If the store fails, only log that. The fork exists, and the door records it when somebody first uses it
          // here.
          if (!isStoreTrouble(error)) throw error;
          this.#state.report.event({ event: "failed", method, sessionId: forkId, ...failure(error) });
        });
        break;
      }
    }
    return result;
  }

  async #recordFork(sessionId: string, server: ServerRecord): Promise<void> {
    const { door, user } = this.#state;
    const { id } = await recordFor(door, sessionId, user);
    if (readSessionFolder(server.home, id)?.hasHistory !== true) return;
    // The fork has a history, but a session whose record has no turns counts as a session without a history. So record
    // one turn.
    await door.store.sessions.update(id, (draft) => {
      draft.turns ||= 1;
    });
  }
}

/** Refuses a member's request that only the owner may make, or that would replace another user's tool. */
export function checkTools(state: ClientState, { method, params }: ClientRequest, record: SessionRecord): void {
  const { user, door } = state;
  if (record.owner === user) return;
  checkMember(method, params);
  if (method !== "session.resume" && method !== "session.tools.set") return;
  const isOthers = (tool: string) => door.bringers(record.id, tool, state).some((other) => other !== user);
  const taken = toolsIn(params).find(({ name }) => isOthers(String(name)));
  if (taken === undefined) return;
  const tool = JSON.stringify(taken.name);
  throw methodDenied(method, `another user's client already provides the tool ${tool} in this session`);
}

/**
 * Refuses a client's answer to a server's question if the session did not ask the question, or if the question is about
 * another client's tool. The runtime would accept an answer from every client that knows the question's id.
 */
function checkAnswer(
  state: ClientState,
  { own }: ServerLink,
  { method, params }: ClientRequest,
  record: SessionRecord,
): void {
  if (!isAnswer(method)) return;
  const asked = state.door.questions.get(record.id, params.requestId);
  const isCollaborative = record.kind === "collaborative";
  if (asked === undefined && (isCollaborative || !own))
    throw methodDenied(method, "this session has not asked for anything under that requestId");
  if (isCollaborative && asked?.tool !== undefined && !answersFor(state, asked.tool, record))
    throw methodDenied(method, "only the client that provides a tool may answer its calls");
}

/**
 * The parameters that the server gets for this client's answer to a permission request; null if the client may not
 * answer it. {@link decide} has the rules. Reports an answer that `decide` changes.
 */
function permitted(
  state: ClientState,
  { own }: ServerLink,
  { method, params }: ClientRequest,
  record: SessionRecord,
): Params | null {
  const { door, report } = state;
  const asked = door.questions.get(record.id, params.requestId);
  const isCollaborative = record.kind === "collaborative";
  const isOwnTool =
    asked?.tool !== undefined &&
    (isCollaborative ? answersFor(state, asked.tool, record) : state.brings(record.id, asked.tool));
  const decided = decide(params, { asked, isOwnTool, isCollaborative }, { own, config: door.config });
  if (decided !== params) {
    const detail = "an approval that this user may not give";
    report.event({ event: "denied", method, sessionId: String(params.sessionId), detail });
  }
  return decided;
}

/**
 * Whether this client may answer for a tool of a collaborative session. It may if it brought the tool. But if a client
 * of the owner brought the same tool, only the owner's clients may. If no client has the tool now, the owner's clients
 * may answer, because the client that brought the tool may have reconnected.
 */
function answersFor(state: ClientState, tool: string, { id, owner }: SessionRecord): boolean {
  const { user, door } = state;
  const others = door.bringers(id, tool, state);
  return state.brings(id, tool) ? user === owner || !others.includes(owner) : user === owner && others.length === 0;
}
