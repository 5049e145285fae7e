import { isRefusedCredential } from "../../runtime/history/turn-tracker.js";
import { type Frame, ProtocolError } from "../../runtime/wire/frames.js";
import type { RpcListener } from "../../runtime/wire/rpc-client.js";
import type { ServerMessage } from "../../runtime/wire/scan.js";
import { forgetToken } from "../../sessions/use/session-token.js";
import { BACKGROUND } from "../../sessions/use/turn-records.js";
import { decidesOnTools, withoutApproval } from "../policy/reach.js";
import type { Attachment, ClientState } from "../state/client-state.js";
import type { Link } from "../state/links.js";
import { OpenRequests } from "../state/open-requests.js";
import { describe } from "../state/report.js";
import type { Prompt, TurnEnds } from "../state/turn.js";
import { endsTurn, errorFrame, eventIn, promptIn } from "../wire/events.js";
import { SERVER_ENDED } from "../wire/refusals.js";

/** Handles the messages that arrive over one link, and forwards to the client those that it may see. */
export class Incoming implements RpcListener {
  /** Set once the other end has answered `connect`. The other end sends nothing before that. */
  link: Link | undefined;
  readonly #state: ClientState;

  constructor(state: ClientState) {
    this.#state = state;
  }

  get isIdle(): boolean {
    return this.#state.isIdle;
  }

  onFrame(message: ServerMessage, frame: Frame): void {
    if (this.link !== undefined) this.#take(this.link, message, frame);
  }

  onDrain(): void {
    if (this.link !== undefined) this.#state.socket.letGo(this.link);
  }

  onFault(error: unknown): void {
    const { report } = this.#state;
    const from = this.link?.id ?? "a server that was being connected to";
    if (error instanceof ProtocolError)
      report.event({ event: "protocol-error", detail: `from ${from}: ${error.message}` });
    else report.event({ event: "failed", detail: `while handling a frame from ${from}: ${describe(error)}` });
  }

  onClosed(): void {
    if (this.link !== undefined) loseLink(this.#state, this.link);
  }

  #take(link: Link, message: ServerMessage, frame: Frame): void {
    const { socket, requests, attachments, report, identity } = this.#state;
    if (message.kind === "response") {
      requests.answer(link, message, frame);
      return;
    }
    const { sessionId, method } = message;
    const attachment = sessionId === undefined ? undefined : attachments.get(sessionId);
    const here = attachment?.linkId === link.id ? attachment : undefined;
    // If the client now has the session open on another link, drop the messages that this link still sends about the
    // session. Keep `session.lifecycle`, which the runtime sends to every client.
    const isLeft = attachment !== undefined && here === undefined && method !== "session.lifecycle";
    // On a server that is not the user's own, the client must see only sessions that it opened. The same applies on the
    // user's own server if the client's identity is valid for only one session.
    const isNarrow = !link.own || identity.sessionId !== undefined;
    const isOthers = isNarrow && (here === undefined || isOfAnother(message, here));
    if (isOthers || isLeft) {
      if (message.kind === "request") OpenRequests.decline(link, message.id);
      if (method !== "session.lifecycle")
        report.event({ event: "dropped", method, detail: "from a server, not for a session of this client" });
      return;
    }
    if (message.kind === "request") {
      requests.ask(link, message, frame, this.#filterFor(link, message.method));
      return;
    }
    if (here === undefined || message.eventType === undefined) socket.send(frame.raw);
    else this.#pass(link, here, message.eventType, frame);
  }

  /** The filter for the client's answer to a server's request. Undefined if the server gets the answer unchanged. */
  #filterFor({ own }: Link, method: string): ((result: unknown) => unknown) | undefined {
    const { config } = this.#state.door;
    return method === "hooks.invoke" && !decidesOnTools({ own, config }) ? withoutApproval : undefined;
  }

  /** Passes on a session event, and records its effect on the client's attachments and turns. */
  #pass(link: Link, attachment: Attachment, eventType: string, { raw, body }: Frame): void {
    const { socket, ends, turns, attachments, door, identity } = this.#state;
    const { sessionId } = attachment;
    const isJudged = link.kind === "peer";
    if (BACKGROUND.has(eventType)) door.sessions.context.provider.expectRequests(sessionId);
    switch (eventType) {
      case "user.message": {
        attachment.inTurn = true;
        const use = turns.get(sessionId)?.use;
        if (use === undefined && !ends.watches(sessionId)) break;
        const id = promptIn(body);
        if (id !== undefined) use?.turn.began(id);
        ends.began(sessionId, id);
        break;
      }
      case "assistant.usage":
        if (link.kind !== "peer") turns.get(sessionId)?.use?.turn.consumed(eventIn(body).data ?? {});
        break;
      case "assistant.message":
        ends.spoke(sessionId);
        break;
      case "assistant.turn_start":
        attachment.inTurn = true;
        turns.get(sessionId)?.noteStep(eventIn(body), "completed");
        break;
      case "session.error": {
        const { frame, data } = errorFrame(body);
        const isRefused = isRefusedCredential(data.statusCode);
        const turn = turns.get(sessionId);
        const use = turn?.use;
        turn?.noteStep(eventIn(body), "failed");
        this.#giveProviderAgain(sessionId);
        if (isRefused) door.signOn.recheck(identity);
        // Forget the refused credential, so that the next turn reads it again from its source.
        if (isRefused && use !== undefined) {
          forgetToken(door.sessions.context, use);
          use.model.isGiven = false;
        }
        ends.error(sessionId, frame, { message: String(data.message), isJudged });
        return;
      }
      // A client that is connected directly to the server may have resumed the session with its own provider. A turn
      // may have been aborted because the provider of such a client did not answer.
      case "session.resume":
      case "abort":
        if (eventType === "abort") turns.get(sessionId)?.noteStep(eventIn(body), "aborted");
        this.#giveProviderAgain(sessionId);
        break;
      case "session.idle": {
        const isLast = endsTurn(body);
        if (isLast) {
          attachment.inTurn = false;
          turns.get(sessionId)?.idle(ends.hasBegunAll(sessionId));
        }
        ends.idle(sessionId, raw, { isLast, isJudged });
        return;
      }
      case "session.deleted":
        // Forget the attachment, because a later session with the same id is another session.
        attachments.delete(sessionId);
        break;
      case "session.shutdown":
        this.#state.shutDown(attachment);
        break;
      case "assistant.message_delta":
      case "assistant.reasoning_delta":
      case "assistant.streaming_delta":
      case "assistant.tool_call_delta":
        socket.sendPiece(raw);
        return;
      default:
        door.questions.note(sessionId, eventType, body);
    }
    socket.send(raw);
  }

  /** Makes the next turn give the server its provider again, in case the server has another one. */
  #giveProviderAgain(sessionId: string): void {
    this.#state.door.sessions.context.provider.noteGiven(sessionId, null);
  }
}

/**
 * Whether a `session.lifecycle` event may be about another user's session with the same id. `heard` is false while the
 * client's session is not loaded. The session may then be deleted unnoticed, and another user may reuse its id. A
 * `session.deleted` is harmless, so it passes.
 */
function isOfAnother(message: ServerMessage & { kind: "request" | "notification" }, { heard }: Attachment): boolean {
  if (heard || message.kind === "request" || message.method !== "session.lifecycle") return false;
  return message.eventType !== "session.deleted";
}

/**
 * Call this when a link has ended. Refuses the requests that wait for its answers, sends the client the ends of the
 * turns that ran there, and records the sessions that the door has to open again.
 */
function loseLink(state: ClientState, link: Link): void {
  const { door, links, attachments, turns, requests, report } = state;
  links.forget(link);
  if (state.gone.aborted) return;
  report.event({ event: link.kind === "peer" ? "host-lost" : "server-lost", detail: link.id });
  // Call `turnsThatGoOn` before `drop`, because it marks the prompts in doubt. `drop` refuses all other unanswered
  // prompts.
  const goOn = turnsThatGoOn(state, link);
  requests.drop(link);
  if (state.boundTo === link) {
    state.socket.end();
    return;
  }
  let lost = false;
  for (const [id, attachment] of attachments) {
    if (attachment.linkId !== link.id || !attachment.attached) continue;
    lost = true;
    attachment.attached = false;
    attachment.heard = false;
    if (goOn.has(id)) {
      attachment.inTurn = false;
      continue;
    }
    state.cut(attachment, SERVER_ENDED);
    turns.get(id)?.interrupted("lost");
  }
  if (lost && link.kind === "server") door.lostServers.await(link.server, state);
  if (lost && link.kind === "peer") door.lostHosts.await(link.host, state);
}

/**
 * Returns the ids of the sessions whose turns continue after the end of the link. These are the turns without a prompt
 * on this link, and the turns with a prompt that the server might not have begun. Such prompts are in doubt from now
 * on: the door may send them again.
 */
function turnsThatGoOn({ turns, ends }: ClientState, link: Link): ReadonlySet<string> {
  const goOn = new Set<string>();
  for (const [id, turn] of turns) {
    if (!turn.active) continue;
    const sent = [...turn.sent].filter((prompt) => prompt.sent?.link === link);
    const doubtful = sent.filter((prompt) => !isAnsweredAndBegun(ends, id, prompt));
    if (sent.length > 0 && doubtful.length === 0) continue;
    goOn.add(id);
    if (doubtful.length < sent.length) ends.cut(id, SERVER_ENDED);
    if (doubtful.length > 0 && link.kind === "server") turn.doubt(doubtful, link);
  }
  return goOn;
}

/** Whether the server has answered and begun the prompt, so that the client needs only the end of its turn. */
function isAnsweredAndBegun(ends: TurnEnds, sessionId: string, { sent }: Prompt): boolean {
  const messageIds = sent?.messageIds ?? null;
  return messageIds !== null && !messageIds.some((id) => ends.waitsFor(sessionId, id));
}
