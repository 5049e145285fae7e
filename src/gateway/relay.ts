import { isFleetError } from "../errors.js";
import { RpcError } from "../runtime/client/raw-connection.js";
import type { HostRecord, SessionRecord } from "../store/store.js";
import { type Attachment, newAttachment } from "./attachments.js";
import type { ClientRequest } from "./client-message.js";
import type { PeerLink } from "./links.js";
import type { Scope } from "./methods.js";
import type { Answer, ForwardOptions, OpenRequests } from "./open-requests.js";
import type { Routes } from "./routes.js";
import { parse } from "./server-message.js";

export interface RelayContext {
  openRequests: OpenRequests;
  attachments: Map<string, Attachment>;
  routes: Routes;
  /** What it is about has left that host: looks again. @returns false when that was done often enough. */
  again: (request: ClientRequest) => boolean;
}

/**
 * Sends requests on to the front doors of other hosts, which judge them for this client as those of their own: here it is
 * only kept in mind what the client has open there.
 */
export class Relay {
  readonly #context: RelayContext;

  constructor(context: RelayContext) {
    this.#context = context;
  }

  /** What is about no session that there is yet. */
  home(link: PeerLink, request: ClientRequest): void {
    if (request.method !== "session.create") {
      this.#send(link, request);
      return;
    }
    const { attachments } = this.#context;
    this.#send(link, request, {
      onAnswer: ({ failed, body }) => {
        const sessionId = failed ? undefined : createdId(body);
        if (sessionId === undefined) return undefined;
        attachments.set(sessionId, { ...newAttachment(sessionId, link.id, request.params), attached: true });
        return undefined;
      },
    });
  }

  async session(scope: Scope, host: HostRecord, request: ClientRequest, record: SessionRecord): Promise<void> {
    const { attachments, routes } = this.#context;
    const { id } = record;
    const params = { ...request.params, sessionId: id };
    if (scope === "resume") return await this.#resume(host, request, record);
    if (scope === "delete") {
      return this.#send(await routes.peer(host), request, {
        params,
        onAnswer: ({ failed }) => {
          if (!failed) attachments.delete(id);
          return undefined;
        },
      });
    }
    const link = await routes.remote(record, host);
    if (scope !== "send") return this.#send(link, request, { params });
    const attachment = attachments.get(id);
    const before = attachment?.inTurn ?? false;
    // Before its events come, of which the last one takes it back.
    if (attachment !== undefined) attachment.inTurn = true;
    this.#send(link, request, {
      params,
      onAnswer: ({ failed }) => {
        // A turn that was under way before may have ended meanwhile: of that the events tell.
        if (failed && !before && attachment !== undefined) attachment.inTurn = false;
        return undefined;
      },
    });
  }

  async #resume(host: HostRecord, request: ClientRequest, { id }: SessionRecord): Promise<void> {
    const { attachments, routes } = this.#context;
    const link = await routes.peer(host);
    const before = attachments.get(id);
    if (before !== undefined && before.linkId !== link.id) routes.leave(before);
    const attachment = before ?? newAttachment(id, link.id, request.params);
    // Known before the answer comes, as its events may.
    attachment.linkId = link.id;
    attachments.set(id, attachment);
    const failed = () => {
      if (before === undefined) attachments.delete(id);
    };
    this.#send(link, request, {
      params: { ...request.params, sessionId: id },
      onAnswer: (answer) => {
        if (answer.failed) failed();
        else {
          attachment.attached = true;
          attachment.asked = request.params;
        }
        return undefined;
      },
      onLost: () => {
        failed();
        return undefined;
      },
    });
  }

  #send(link: PeerLink, request: ClientRequest, options: ForwardOptions = {}): void {
    const { openRequests, again } = this.#context;
    openRequests.forward(link, request, {
      ...options,
      onAnswer: (answer) => {
        options.onAnswer?.(answer);
        return saysMoved(answer) && again(request) ? "hold" : undefined;
      },
    });
  }
}

/** Whether an answer of another front door says that what was asked for is not there. */
export function saysMoved({ failed, body }: Answer): boolean {
  if (!failed) return false;
  const { error } = parse(body) as { error?: { data?: { code?: unknown } } };
  return error?.data?.code === MOVED;
}

/** The same of an error that was thrown, here or by another front door. */
export function isMoved(error: unknown): boolean {
  return isFleetError(error, MOVED) || (error instanceof RpcError && error.fleetCode === MOVED);
}

const MOVED = "FLEET_SESSION_MOVED";

function createdId(body: Buffer): string | undefined {
  const { result } = parse(body) as { result?: { sessionId?: unknown } };
  return typeof result?.sessionId === "string" ? result.sessionId : undefined;
}
