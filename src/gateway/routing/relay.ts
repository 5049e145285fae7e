import { isFleetError } from "../../errors.js";
import type { HostRecord } from "../../model/host.js";
import type { SessionRecord } from "../../model/session.js";
import { RpcError } from "../../runtime/wire/rpc-client.js";
import { parse } from "../../runtime/wire/server-message.js";
import type { Scope } from "../policy/methods.js";
import { type Attachment, newAttachment } from "../state/attachments.js";
import type { PeerLink } from "../state/links.js";
import type { Answer, ForwardOptions, OpenRequests } from "../state/open-requests.js";
import type { ClientRequest } from "../wire/client-message.js";
import type { Routes } from "./routes.js";

export interface RelayContext {
  openRequests: OpenRequests;
  attachments: Map<string, Attachment>;
  routes: Routes;
  /**
   * Looks again for a request's session or user, which has left that host.
   *
   * @returns false after the last attempt.
   */
  again: (request: ClientRequest) => boolean;
}

/**
 * Relays requests to the front doors of other hosts, which check them like those of their own clients. This host only
 * keeps track of the sessions that the client has open there.
 */
export class Relay {
  readonly #context: RelayContext;

  constructor(context: RelayContext) {
    this.#context = context;
  }

  /** Relays a request that is not about an existing session. */
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
    // Set this before the turn's events arrive, because the last event clears it.
    if (attachment !== undefined) attachment.inTurn = true;
    this.#send(link, request, {
      params,
      onAnswer: ({ failed }) => {
        // If the session was in a turn before, that turn's events clear the flag.
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
    // Record this before the answer comes, because events may arrive first.
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

/** Whether the answer of another front door reports that the session or user has moved. */
export function saysMoved({ failed, body }: Answer): boolean {
  if (!failed) return false;
  const { error } = parse(body) as { error?: { data?: { code?: unknown } } };
  return error?.data?.code === MOVED;
}

/** The same for an error that was thrown, here or by another front door. */
export function isMoved(error: unknown): boolean {
  return isFleetError(error, MOVED) || (error instanceof RpcError && error.fleetCode === MOVED);
}

const MOVED = "FLEET_SESSION_MOVED";

function createdId(body: Buffer): string | undefined {
  const { result } = parse(body) as { result?: { sessionId?: unknown } };
  return typeof result?.sessionId === "string" ? result.sessionId : undefined;
}
