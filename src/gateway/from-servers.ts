import type { Config } from "../config/schema.js";
import type { Attachment } from "./attachments.js";
import type { ClientSocket } from "./client-socket.js";
import type { DoorEvent } from "./context.js";
import { endsTurn, errorIn, promptIn } from "./events.js";
import { type Frame, ProtocolError } from "./frames.js";
import type { Link } from "./links.js";
import { OpenRequests } from "./open-requests.js";
import { decidesOnTools, withoutApproval } from "./reach.js";
import { describe } from "./refusals.js";
import type { ServerMessage } from "./server-message.js";
import type { SessionRequests } from "./session-requests.js";
import type { Turn } from "./turn.js";
import type { TurnEnds } from "./turn-ends.js";
import type { UpstreamListener } from "./upstream.js";

export interface FromServersContext {
  config: Config;
  client: ClientSocket;
  openRequests: OpenRequests;
  ends: TurnEnds;
  sessionRequests: SessionRequests;
  attachment: (sessionId: string) => Attachment | undefined;
  turn: (sessionId: string) => Turn | undefined;
  /** The session is gone for good: whoever takes its id has another. */
  deleted: (sessionId: string) => void;
  onEvent: (event: Omit<DoorEvent, "address" | "user">) => void;
  onLost: (link: Link) => void;
}

/** What comes from servers, and from them over other front doors: passed on as it is, if it is this client's to see. */
export class FromServers {
  readonly #context: FromServersContext;

  constructor(context: FromServersContext) {
    this.#context = context;
  }

  listener(linkOf: () => Link | undefined): UpstreamListener {
    const { client, onEvent, onLost } = this.#context;
    return {
      onBatch: (edge) => (edge === "begin" ? client.cork() : client.uncork()),
      onFrame: (message, frame) => {
        const link = linkOf();
        // Before it is known there is nothing to come but the answer to `connect`.
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
        else onEvent({ event: "failed", detail: `at a frame from ${from}: ${describe(error)}` });
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
    // On a server where others are, too, only what this client opened is its to see. (`session.lifecycle` goes to all.)
    // What the client has open elsewhere by now says nothing more from where it was.
    const isLeft = attachment !== undefined && here === undefined && method !== "session.lifecycle";
    const isOthers = !link.own && (here === undefined || isOfAnother(message, here));
    if (isOthers || isLeft) {
      if (message.kind === "request") OpenRequests.decline(link, message.id);
      if (method !== "session.lifecycle")
        onEvent({ event: "dropped", method, detail: "from a server, for nobody here" });
      return;
    }
    if (message.kind === "request") {
      openRequests.ask(link, message, frame, this.#filterFor(link, message.method));
      return;
    }
    if (here === undefined || message.eventType === undefined) client.send(frame.raw);
    else this.#pass(link, here, message.eventType, frame);
  }

  /** What a server gets of the client's answer: all of it, unless that could approve tools. */
  #filterFor({ own }: Link, method: string): ((result: unknown) => unknown) | undefined {
    const { config } = this.#context;
    return method === "hooks.invoke" && !decidesOnTools({ own, config }) ? withoutApproval : undefined;
  }

  /** Passes an event of a session on, and keeps in mind what it says of the session. */
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
        // The runtime unloads it without a word to whoever waits for the end of the turn, which may not have been heard of yet.
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

/** Deleted without the server's word, or while the client did not hear of it, the session may be a namesake of somebody else's. */
function isOfAnother(message: ServerMessage & { kind: "request" | "notification" }, { heard }: Attachment): boolean {
  if (heard || message.kind === "request" || message.method !== "session.lifecycle") return false;
  return message.eventType !== "session.deleted";
}

const UNLOADED = "The session was unloaded during the turn. It goes on: send it again.";
