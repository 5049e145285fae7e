import type { HostRecord } from "../../base/host.js";
import type { SessionRecord } from "../../base/session.js";
import type { SessionHandling } from "../policy/methods.js";
import { type ClientState, newAttachment } from "../state/client-state.js";
import { type PeerLink, saysMoved } from "../state/links.js";
import type { Answer, ForwardOptions } from "../state/open-requests.js";
import type { ClientRequest } from "../wire/client-message.js";
import { resultIn } from "../wire/events.js";
import type { Router } from "./router.js";

/**
 * Relays requests to the front doors of other hosts, which check them like the requests of their own clients. This host
 * only keeps track of the sessions that the client has open there.
 */
export class Relay {
  readonly #state: ClientState;
  readonly #router: Router;

  constructor(state: ClientState, router: Router) {
    this.#state = state;
    this.#router = router;
  }

  /** Relays a request that is not about an existing session. */
  home(link: PeerLink, request: ClientRequest): void {
    if (request.method !== "session.create") {
      this.#send(link, request);
      return;
    }
    const { attachments } = this.#state;
    this.#send(link, request, {
      onAnswer: ({ failed, body }): undefined => {
        const { sessionId } = ((failed ? undefined : resultIn(body)) ?? {}) as { sessionId?: unknown };
        if (typeof sessionId !== "string") return;
        attachments.set(sessionId, { ...newAttachment(sessionId, link.id, request.params), attached: true });
      },
    });
  }

  async session(
    { handler }: Pick<SessionHandling, "handler">,
    host: HostRecord,
    request: ClientRequest,
    record: SessionRecord,
  ): Promise<void> {
    const { attachments } = this.#state;
    const { id } = record;
    const params = { ...request.params, sessionId: id };
    if (handler === "open") return await this.#resume(host, request, record);
    if (handler === "delete") {
      return this.#send(await this.#router.peer(host), request, {
        params,
        onAnswer: ({ failed }): undefined => {
          if (!failed) attachments.delete(id);
        },
      });
    }
    const link = await this.#router.linkThere(record, host);
    if (handler !== "send") return this.#send(link, request, { params });
    const attachment = attachments.get(id);
    const before = attachment?.inTurn ?? false;
    // Set `inTurn` before the turn's events arrive, because the last event clears it.
    if (attachment !== undefined) attachment.inTurn = true;
    this.#send(link, request, {
      params,
      onAnswer: ({ failed }): undefined => {
        // If a turn was already running before this prompt, the events of that turn clear `inTurn`.
        if (failed && !before && attachment !== undefined) attachment.inTurn = false;
      },
    });
  }

  async #resume(host: HostRecord, request: ClientRequest, { id }: SessionRecord): Promise<void> {
    const { attachments } = this.#state;
    const link = await this.#router.peer(host);
    const before = attachments.get(id);
    if (before !== undefined && before.linkId !== link.id) this.#router.leave(before);
    const attachment = before ?? newAttachment(id, link.id, request.params);
    // Add the attachment before the answer comes, because the session's events may arrive first.
    attachment.linkId = link.id;
    attachments.set(id, attachment);
    const onLost = (): undefined => {
      if (before === undefined) attachments.delete(id);
    };
    const onAnswer = ({ failed }: Answer): undefined => {
      if (failed) return onLost();
      this.#state.attach(attachment, link);
      attachment.asked = request.params;
    };
    this.#send(link, request, { params: { ...request.params, sessionId: id }, onAnswer, onLost });
  }

  #send(link: PeerLink, request: ClientRequest, options: ForwardOptions = {}): void {
    const { requests, lines } = this.#state;
    requests.forward(link, request, {
      ...options,
      onAnswer: (answer) => {
        options.onAnswer?.(answer);
        return saysMoved(answer) && lines.lookAgain(request) ? "hold" : undefined;
      },
    });
  }
}
