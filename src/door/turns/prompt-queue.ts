import { setTimeout as delay } from "node:timers/promises";
import { deadline } from "../../base/clock.js";
import { FleetError, isFleetError } from "../../base/errors.js";
import type { ServerRecord } from "../../base/server.js";
import type { SessionRecord } from "../../base/session.js";
import { isInTurn, RawConnection } from "../../runtime/client/raw-connection.js";
import { NEVER_BEGAN } from "../../runtime/client/turn.js";
import { provenEndpoint } from "../../runtime/process/probe.js";
import { RpcError } from "../../runtime/wire/rpc-client.js";
import { isRunning } from "../../servers/server.js";
import { TurnEvents } from "../../sessions/use/turn-records.js";
import { type SessionUse, useSession } from "../../sessions/use/use-session.js";
import { checkReach, reachOf } from "../policy/reach.js";
import type { Router } from "../routing/router.js";
import type { ClientState } from "../state/client-state.js";
import type { DoorState } from "../state/door-state.js";
import type { ServerLink } from "../state/links.js";
import { failure } from "../state/report.js";
import { type Doubt, noteAnswer, type Prompt, Turn } from "../state/turn.js";
import type { ClientRequest } from "../wire/client-message.js";
import { messageIdsOf, saysUnloaded } from "../wire/events.js";
import { doorDraining } from "../wire/refusals.js";
import { settleDoubt } from "./resend.js";
import { abortTurn, follow, linkOnceEnded, noteSent, noteUse, prepare, turnRequest, untilOver } from "./turn-server.js";

/**
 * The prompts of one client, and their turns. `useSession` lets only one turn at a time into a session.
 *
 * A prompt passes through `send`, `#queue`, `#begin` (a new turn), `#run` (the whole turn), `#hold`, `#sendWaiting`,
 * `#forward` and `#write`. {@link Turn} shows which parts end the turn.
 */
export class PromptQueue {
  readonly #state: ClientState;
  readonly #router: Router;

  constructor(state: ClientState, router: Router) {
    this.#state = state;
    this.#router = router;
  }

  /**
   * Accepts a prompt. Resolves once the prompt has been sent or refused, or has to wait for a turn.
   *
   * @throws FleetError `FLEET_TURN_FAILED` when the client has gone; `FLEET_POOL_DRAINING` when the door is about to
   * close.
   */
  async send(request: ClientRequest, record: SessionRecord): Promise<void> {
    const { gone, door, lines } = this.#state;
    gone.throwIfAborted();
    // Check again, because the door may have begun to drain while the dispatcher looked for the session's host.
    if (door.draining) throw doorDraining();
    const unsent = {
      turn: undefined,
      again: false,
      sent: undefined,
      isRepeated: false,
      isAnswered: false,
      charge: null,
    };
    await this.#queue({ request, place: lines.placeOf(request), ...unsent }, record);
  }

  /** Whether the client has prompts in this session that wait for a turn to begin, or that are just being sent. */
  waits(sessionId: string): boolean {
    const turn = this.#state.turns.get(sessionId);
    return turn !== undefined && (turn.waits || turn.sending !== null);
  }

  /** Resolves once all prompts of the client's current turn have been sent or refused, so later requests may follow. */
  async sent(sessionId: string): Promise<void> {
    await this.#state.turns.get(sessionId)?.sending;
  }

  /** Cancels the session's prompts that wait for a turn. @returns false if no prompt waits */
  cancel(sessionId: string): boolean {
    const turn = this.#state.turns.get(sessionId);
    if (turn?.waits !== true) return false;
    this.#giveUp(turn, new FleetError("FLEET_TURN_FAILED", "The prompt was cancelled while it waited for its turn."));
    return true;
  }

  /** Cancels the waiting prompts of all sessions. Each prompt gets the error as its answer. */
  cancelAll(error: FleetError): void {
    for (const turn of this.#state.turns.values()) if (turn.waits) this.#giveUp(turn, error);
  }

  /** Refuses the waiting prompts, and ends the turn at once, so that a later prompt begins a new turn. */
  #giveUp(turn: Turn, error: FleetError): void {
    for (const prompt of turn.waiting.takeAll()) this.#refuse(prompt, turn.record, error);
    turn.end("refused");
    turn.abort.abort(error);
  }

  /** Resolves once the prompt has been sent or refused, or has to wait for a turn. */
  async #queue(prompt: Prompt, record: SessionRecord): Promise<void> {
    const turn = this.#state.turns.get(record.id);
    // Begin a new turn if the last one is over, unless prompts of the last one still have to be moved to a new turn.
    if (turn === undefined || (turn.over !== null && turn.sending === null)) {
      this.#begin(prompt, record);
      return;
    }
    turn.waiting.insert(prompt);
    if (turn.active) await this.#sendWaiting(turn);
  }

  #begin(prompt: Prompt, record: SessionRecord): void {
    const { turns } = this.#state;
    const turn = new Turn(record, this.#state.door.clock);
    turn.waiting.insert(prompt);
    turn.settled = this.#run(turn);
    turns.set(record.id, turn);
    void turn.settled.then(() => {
      if (turns.get(record.id) === turn) turns.delete(record.id);
    });
  }

  /** Never rejects. After a failure, the prompts that still wait get the error as their answer. */
  async #run(turn: Turn): Promise<void> {
    const { door, report } = this.#state;
    const { record, waiting, abort } = turn;
    const { id } = record;
    try {
      const request = turnRequest(this.#state, turn);
      await using use = await useSession(door.sessions.context, request);
      turn.enter(use);
      if (use.server !== request.at) await follow(this.#state, this.#router, use);
      await this.#hold(turn, use);
      // Record the use before the lease is released. If the front door closes during the release, a later record could
      // be lost.
      noteUse(this.#state, turn);
      const unreleased = await use.end();
      if (unreleased !== null) report.event({ event: "failed", sessionId: id, ...failure(unreleased) });
    } catch (error) {
      // If no prompt is left to get the error as its answer, log it. For example, the lease was lost during the turn.
      if (waiting.isEmpty && error !== abort.signal.reason)
        report.event({ event: "failed", sessionId: id, ...failure(error) });
      for (const prompt of waiting.takeAll()) this.#refuse(prompt, record, error);
      turn.end("refused");
    }
  }

  async #hold(turn: Turn, use: SessionUse): Promise<void> {
    const { door, ends, attachments } = this.#state;
    const { lease } = use;
    const { id } = turn.record;
    turn.abort.signal.throwIfAborted();
    const onLost = () => void abortTurn(this.#state, this.#router, turn.record, lease?.signal.reason);
    lease?.signal.addEventListener("abort", onLost, { once: true });
    try {
      startTurn(this.#state, turn, use);
      void this.#settleDoubts(turn);
      await this.#sendWaiting(turn);
      const isFoundIdle = await untilOver(this.#state, this.#router, turn);
      // If a prompt has not begun, send an error and not an idle. At an idle, the client's SDK would take the last
      // message of another turn for the answer to its prompt.
      if (isFoundIdle && attachments.has(id) && !ends.hasBegunAll(id) && !ends.holdsError(id))
        ends.cut(id, NEVER_BEGAN);
      else if (isFoundIdle) ends.over(id);
    } finally {
      turnOver(turn);
      lease?.signal.removeEventListener("abort", onLost);
    }
    if (turn.over === "closed" && turn.begun) await abandonedTurnOver(door, use);
  }

  /** Sends the waiting prompts one after another, while the turn is active. Never rejects. */
  async #sendWaiting(turn: Turn): Promise<void> {
    const { waiting } = turn;
    // Count all prompts of the turn now, because a turn ends when its last counted prompt is refused.
    for (const prompt of waiting) {
      if (prompt.turn === turn) continue;
      prompt.turn = turn;
      turn.sends();
    }
    turn.sending ??= Promise.resolve().then(async () => {
      while (turn.active && !turn.isInDoubt) {
        const next = waiting.take();
        if (next === undefined) break;
        await this.#forward(turn, next);
      }
      turn.sending = null;
      if (turn.over !== null) this.#moveOn(turn);
    });
    await turn.sending;
  }

  /**
   * Moves the waiting prompts to a new turn, because this turn is over and has neither a lease nor a use marker any
   * more.
   */
  #moveOn({ waiting, record }: Turn): void {
    const { gone, door } = this.#state;
    for (const prompt of waiting.takeAll()) {
      const error: unknown = gone.aborted ? gone.reason : door.draining ? doorDraining() : undefined;
      if (error === undefined) void this.#queue(prompt, record);
      else this.#refuse(prompt, record, error);
    }
  }

  /**
   * Refuses a prompt. If its session has moved to another host, `OpenRequests.refuse` puts the prompt back in its line,
   * and the dispatcher then relays it to that host.
   */
  #refuse(prompt: Prompt, { id }: SessionRecord, error: unknown): void {
    const { requests, ends, report } = this.#state;
    prompt.charge?.refund();
    prompt.charge = null;
    if (!prompt.isAnswered) {
      const isRefused = requests.refuse(prompt.request, error);
      if (isRefused && isFleetError(error, "FLEET_LIMIT_REACHED"))
        report.event({ event: "denied", method: prompt.request.method, sessionId: id, ...failure(error) });
      return;
    }
    ends.cut(id, error instanceof Error ? error.message : String(error));
    ends.takenAgain(id, null);
  }

  async #forward(turn: Turn, prompt: Prompt): Promise<void> {
    const { door, protocol } = this.#state;
    const { record, waiting } = turn;
    const { request } = prompt;
    try {
      const link = await linkOnceEnded(this.#state, this.#router, record);
      checkReach(request, protocol.handlingOf(request.method), reachOf(link, door.config));
      await prepare(this.#state, turn, link);
      prompt.charge ??= (await turn.use?.charge()) ?? null;
      // Refuse a prompt whose lease was lost while it waited. Check this last, right before the write to the socket.
      await turn.use?.lease?.check();
      // Check again, because the turn may be over by now, or an earlier prompt may have to be sent again.
      const isOvertaking = turn.isInDoubt || waiting.hasBefore(prompt);
      // Check the link too, because a write to a closed link is lost without an error.
      if (!turn.active || isOvertaking || link.upstream.closed) {
        waiting.insert(prompt);
        return;
      }
      noteSent(this.#state, turn, prompt, link);
      if (prompt.isAnswered) this.#writeAgain(turn, prompt, link);
      else this.#write(turn, prompt, link);
    } catch (error) {
      turn.answered(false);
      this.#refuse(prompt, record, error);
    }
  }

  #write(turn: Turn, prompt: Prompt, link: ServerLink): void {
    const { requests, attachments } = this.#state;
    const { record, sent } = turn;
    const { request } = prompt;
    const { id } = record;
    requests.forward(link, request, {
      params: { ...request.params, sessionId: id },
      onAnswer: ({ failed, body, messageIds }) => {
        if (failed) sent.delete(prompt);
        if (failed && !prompt.again && attachments.has(id) && saysUnloaded(body)) {
          // The prompt still counts as unanswered in its turn, so do not call `answered`.
          this.#state.unloaded(id);
          prompt.again = true;
          void this.#queue(prompt, record);
          return "hold";
        }
        if (messageIds !== null) noteAnswer(prompt, messageIds);
        if (failed) prompt.charge?.refund();
        turn.answered(!failed);
        return undefined;
      },
      onLost: () => {
        if (turn.isDoubtful(prompt)) return "hold";
        turn.end("lost");
        return undefined;
      },
    });
  }

  /** Sends a prompt again after its server ended. The client does not get this answer, because it has the first one. */
  #writeAgain(turn: Turn, prompt: Prompt, link: ServerLink): void {
    const { ends } = this.#state;
    const { record, sent } = turn;
    const { request } = prompt;
    const taken = (result: unknown) => {
      const messageIds = messageIdsOf(result, link.greeting);
      noteAnswer(prompt, messageIds);
      ends.takenAgain(record.id, messageIds);
      turn.answered(true);
    };
    const params = { ...request.params, sessionId: record.id };
    link.upstream.request(request.method, params, taken).catch((error: unknown) => {
      if (turn.isDoubtful(prompt)) return;
      sent.delete(prompt);
      turn.answered(false);
      this.#refuse(prompt, record, error);
    });
  }

  /** Never rejects. */
  async #settleDoubts(turn: Turn): Promise<void> {
    for (let doubt = await turn.doubts.take(); doubt !== undefined; doubt = await turn.doubts.take())
      void this.#settle(turn, doubt);
  }

  /** Never rejects. */
  async #settle(turn: Turn, doubt: Doubt): Promise<void> {
    await settleDoubt(this.#state, turn, doubt);
    if (turn.active) await this.#sendWaiting(turn);
    else this.#moveOn(turn);
  }
}

/** How often to ask the server about a turn whose client has gone, in milliseconds. */
const ASK_MS = 250;

/**
 * Waits for the end of a turn whose client has disconnected, because the turn continues if other clients have the
 * session open. Stops waiting when the door drains. Asks the server over a new connection, because the client's
 * connections are closed.
 *
 * Aborts the turn when its lease is lost, or after `lock.ttl`, because the turn may be waiting for an answer of the
 * client that has gone.
 *
 * @param use the turn's use of the session
 * @throws the last error, when the time is up and the server runs but does not answer.
 */
async function abandonedTurnOver(door: DoorState, { server, record, lease }: SessionUse): Promise<void> {
  const until = performance.now() + door.config.lock.ttlMs;
  const isGivenUp = () => door.draining || lease?.signal.aborted === true || performance.now() > until;
  for (;;) {
    try {
      return await ask(door, server, record.id, isGivenUp);
    } catch (error) {
      // Either the session is no longer in memory, or its server has ended. So its turn is over.
      if (error instanceof RpcError || !isRunning(server)) return;
      if (isGivenUp()) throw error;
    }
    await delay(ASK_MS);
  }
}

async function ask(door: DoorState, server: ServerRecord, sessionId: string, isGivenUp: () => boolean): Promise<void> {
  const answerMs = door.config.health.timeoutMs;
  using opening = deadline(answerMs);
  await using connection = await RawConnection.open(provenEndpoint(server), opening.signal, { lasting: true });
  const request = async (method: string, params: object) => {
    using limit = deadline(answerMs);
    return await connection.request(method, params, limit.signal);
  };
  // Require two idle answers, because the prompt may still be on its way to the server.
  for (let idle = 0; idle < 2; ) {
    if (door.draining) return;
    if (isGivenUp()) {
      await request("session.abort", { sessionId });
      return;
    }
    const inTurn = await isInTurn({ request }, sessionId);
    if (inTurn === null) return;
    idle = inTurn ? 0 : idle + 1;
    if (idle < 2) await delay(ASK_MS);
  }
}

/** Starts a turn, and records that in the audit log. */
function startTurn({ door, user }: ClientState, turn: Turn, use: SessionUse): void {
  turn.start();
  turn.events = new TurnEvents(door.sessions.context.events, user, use);
}

/** Records the end of a turn in the audit log. Call it once the turn accepts no more prompts. */
function turnOver({ accepted, doubts, events, outcome, over }: Turn): void {
  doubts.close();
  if (over === "lost" || over === "unloaded" || over === null)
    events?.ended({ outcome: "cut", reason: over ?? "failed" });
  else if (over === "closed") events?.ended({ outcome: "aborted", reason: "client-left" });
  else events?.ended({ outcome: accepted ? outcome : "refused", reason: null });
}
