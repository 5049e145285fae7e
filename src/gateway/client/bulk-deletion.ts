import { isFleetError } from "../../errors.js";
import { isSessionId } from "../../model/ids.js";
import { RpcError } from "../../runtime/wire/rpc-client.js";
import { recordFor } from "../../sessions/find.js";
import { isStoreTrouble } from "../../sessions/problems.js";
import type { Router } from "../routing/router.js";
import type { ClientState } from "../state/client-state.js";
import { failure } from "../state/door/report.js";
import type { ServerLink } from "../state/links.js";
import type { ClientRequest, Params } from "../wire/client-message.js";
import type { SessionCalls } from "./session-calls.js";

/** The runtime's error code for a parameter that is missing or has the wrong type (measured with 1.0.85). */
const INTERNAL_ERROR = -32603;

/**
 * Deletes many sessions of a user in one request. The door handles each session like a `session.delete`, because the server
 * neither checks who may delete a session nor deletes its record. The answers have the shape of a bare server's answers.
 */
export class BulkDeletion {
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
