import type { Identity } from "../../identity/identity.js";
import { decide } from "../../identity/policy.js";
import type { ClientRequest } from "../wire/client-message.js";

/**
 * Replaces the `session.resume` of a client that may only read. The new request has no settings, because a client's
 * tools, hooks, instructions and model affect the session's turns. It adds no event to the session's history
 * (`disableResume`). It asks for streaming, because otherwise the runtime (1.0.85) stops streaming to the session's
 * other clients.
 */
export function asViewer(request: ClientRequest, identity: Identity): ClientRequest {
  if (decide(identity, "use", "none") === "allowed") return request;
  const { sessionId, clientName } = request.params;
  return { ...request, params: { sessionId, clientName, streaming: true, disableResume: true } };
}
