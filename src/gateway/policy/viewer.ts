import type { Identity } from "../../identity/identity.js";
import { decide } from "../../identity/policy.js";
import type { ClientRequest } from "../wire/client-message.js";

/**
 * The `session.resume` of a client that may only read. It opens a session without any settings, because tools, hooks, instructions
 * and the model of a client affect the session's turns. It does not add an event to the session's history either. It asks for
 * streaming, because the runtime (1.0.85) would otherwise end the streaming to the session's other clients.
 */
export function asViewer(request: ClientRequest, identity: Identity): ClientRequest {
  if (decide(identity, "use", "none") === "allowed") return request;
  const { sessionId, clientName } = request.params;
  return { ...request, params: { sessionId, clientName, streaming: true, disableResume: true } };
}
