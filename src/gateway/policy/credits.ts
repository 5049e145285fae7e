import { type CappedConfig, creditCap, isWithin } from "../../model/usage/credits.js";
import type { Params } from "../wire/client-message.js";
import { methodDenied } from "../wire/refusals.js";

/** Methods that ask the model outside a turn, in requests that the runtime adds to the credits of the session (1.0.85). */
const ASKING = new Set(
  `session.history.compact session.mcp.executeSampling session.fleet.start session.tasks.startAgent
  session.tasks.sendMessage session.commands.invoke session.commands.enqueue session.commands.execute
  session.factory.run session.factory.resume session.factory.agent session.workflow.run session.workflow.resume
  session.workflow.agent session.tools.execute session.sendSystemNotification`.split(/\s+/),
);

/**
 * Methods that ask the model in requests that the runtime does not add to the credits of the session, or that take off what the
 * session has used, with the part of the history in which it was used (1.0.85).
 */
const UNCOUNTED = new Set(
  `session.ui.ephemeralQuery session.history.summarizeForHandoff session.history.truncate session.history.rewind
  session.history.clearContext`.split(/\s+/),
);

/** Whether a method asks the model outside a turn, so that the session must have AI credits left. */
export function asksModel(method: string): boolean {
  return ASKING.has(method);
}

/**
 * Refuses a request that would remove the cap on a session's AI credits, raise it above that of the fleet, or get round it. A
 * client raises it with an option, or with the answer to the runtime's question what to do at the cap.
 */
export function checkCredits(method: string, asked: Params, config: CappedConfig): void {
  const cap = creditCap(config);
  if (cap === null) return;
  const allowed = `a session may use ${cap} AI credits (session.maxCredits)`;
  if (UNCOUNTED.has(method))
    throw methodDenied(method, `${allowed}, and this would not count, or take off what has counted`);
  if (!keeps(method, asked, cap)) throw methodDenied(method, `${allowed}, and a client can only lower that`);
}

function keeps(method: string, { sessionLimits, response }: Params, cap: number): boolean {
  if (method !== "session.ui.handlePendingSessionLimitsExhausted")
    return sessionLimits === undefined || isWithin(sessionLimits, cap);
  const { action } = (response ?? {}) as { action?: unknown };
  return action === "cancel" || (action === "set" && isWithin(response, cap));
}
