import type { Config } from "../../config/schema.js";
import { type Frame, ProtocolError } from "../../runtime/wire/frames.js";
import type { RpcListener } from "../../runtime/wire/rpc-client.js";
import type { ServerMessage } from "../../runtime/wire/server-message.js";
import { decidesOnTools, withoutApproval } from "../policy/reach.js";
import type { Attachment } from "../state/attachments.js";
import type { DoorEvent } from "../state/door/report.js";
import { describe } from "../state/door/report.js";
import type { SessionRequests } from "../state/door/server-questions.js";
import type { Link } from "../state/links.js";
import { OpenRequests } from "../state/open-requests.js";
import type { Turn } from "../state/turn.js";
import type { TurnEnds } from "../state/turn-ends.js";
import type { ClientSocket } from "../wire/client-socket.js";
import { endsTurn, errorIn, promptIn } from "../wire/events.js";

export interface FromServersContext {
  config: Config;
  client: ClientSocket;
  openRequests: OpenRequests;
  ends: TurnEnds;
  sessionRequests: SessionRequests;
  attachment: (sessionId: string) => Attachment | undefined;
  turn: (sessionId: string) => Turn | undefined;
  /** Called when the session was deleted. A later session with the same id is another one. */
  deleted: (sessionId: string) => void;
  onEvent: (event: Omit<DoorEvent, "address" | "user">) => void;
  onLost: (link: Link) => void;
}

/** Passes on to the client what servers send, directly or through other front doors, if the client may see it. */
export class FromServers {
  readonly #context: FromServersContext;

  constructor(context: FromServersContext) {
    this.#context = context;
  }

  listener(linkOf: () => Link | undefined): RpcListener {
    const { client, onEvent, onLost } = this.#context;
    return {
      onBatch: (edge) => (edge === "begin" ? client.cork() : client.uncork()),
      onFrame: (message, frame) => {
        const link = linkOf();
        // The link exists once the other end has answered `connect`, and it sends nothing before that.
        if (link !== undefined) this.#take(link, message, frame);
      },
      onDrain: () => {
        const link = linkOf();
        if (link !== undefined) client.letGo(link);
      },
      onFault: (error) => {
        const from = linkOf()?.id ?? "a server that was being connected to";
        if (error instanceof ProtocolError)
          onEvent({ event: "protocol-error", detail: `from ${from}: ${error.message}` });
        else onEvent({ event: "failed", detail: `while handling a frame from ${from}: ${describe(error)}` });
      },
      onClosed: () => {
        const link = linkOf();
        if (link !== undefined) onLost(link);
      },
    };
  }

  #take(link: Link, message: ServerMessage, frame: Frame): void {
    const { client, openRequests, onEvent } = this.#context;
    if (message.kind === "response") {
      openRequests.answer(link, message, frame);
      return;
    }
    const { sessionId, method } = message;
    const attachment = sessionId === undefined ? undefined : this.#context.attachment(sessionId);
    const here = attachment?.linkId === link.id ? attachment : undefined;
    // The runtime sends `session.lifecycle` to every client. On a server that others use, too, the client must see only the
    // sessions that it opened. Also drop what a link sends about a session that the client has open on another link by now.
    const isLeft = attachment !== undefined && here === undefined && method !== "session.lifecycle";
    const isOthers = !link.own && (here === undefined || isOfAnother(message, here));
    if (isOthers || isLeft) {
      if (message.kind === "request") OpenRequests.decline(link, message.id);
      if (method !== "session.lifecycle")
        onEvent({ event: "dropped", method, detail: "from a server, not for a session of this client" });
      return;
    }
    if (message.kind === "request") {
      openRequests.ask(link, message, frame, this.#filterFor(link, message.method));
      return;
    }
    if (here === undefined || message.eventType === undefined) client.send(frame.raw);
    else this.#pass(link, here, message.eventType, frame);
  }

  /** The filter for the client's answer, if that must not approve tools. Undefined: the server gets the whole answer. */
  #filterFor({ own }: Link, method: string): ((result: unknown) => unknown) | undefined {
    const { config } = this.#context;
    return method === "hooks.invoke" && !decidesOnTools({ own, config }) ? withoutApproval : undefined;
  }

  /** Passes on an event of a session, and records its effect on the session's state. */
  #pass(link: Link, attachment: Attachment, eventType: string, { raw, body }: Frame): void {
    const { client, ends } = this.#context;
    const { sessionId } = attachment;
    const turn = this.#context.turn(sessionId);
    const isJudged = link.kind === "peer";
    switch (eventType) {
      case "user.message":
        attachment.inTurn = true;
        if (ends.watches(sessionId)) ends.began(sessionId, promptIn(body));
        break;
      case "assistant.message":
        ends.spoke(sessionId);
        break;
      case "assistant.turn_start":
        attachment.inTurn = true;
        break;
      case "session.error":
        ends.error(sessionId, raw, { message: errorIn(body), isJudged });
        return;
      case "session.idle": {
        const isLast = endsTurn(body);
        if (isLast) {
          attachment.inTurn = false;
          turn?.idle(ends.hasBegunAll(sessionId));
        }
        ends.idle(sessionId, raw, { isLast, isJudged });
        return;
      }
      case "session.deleted":
        this.#context.deleted(sessionId);
        break;
      case "session.shutdown":
        attachment.attached = false;
        attachment.heard = false;
        // The runtime unloads the session without sending the end of its turn, so send it here. The turn may have begun
        // even if none of its events have arrived.
        if (turn?.active === true && turn.accepted) ends.cut(sessionId, UNLOADED);
        else if (attachment.inTurn) ends.cutOther(sessionId, UNLOADED);
        attachment.inTurn = false;
        turn?.interrupted("unloaded");
        break;
      default:
        this.#context.sessionRequests.note(attachment.sessionId, eventType, body);
    }
    client.send(raw);
  }
}

/**
 * Whether a `session.lifecycle` event may be about another user's session with the same id. Once `heard` is false, the
 * client's session may have been deleted unnoticed. A `session.deleted` passes in any case.
 */
function isOfAnother(message: ServerMessage & { kind: "request" | "notification" }, { heard }: Attachment): boolean {
  if (heard || message.kind === "request" || message.method !== "session.lifecycle") return false;
  return message.eventType !== "session.deleted";
}

const UNLOADED = "The session was unloaded during the turn. The session still works: send the prompt again.";
