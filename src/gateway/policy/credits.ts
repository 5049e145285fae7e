import { type CreditConfig, creditLimit, isWithin } from "../../model/usage/credits.js";
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
 * Methods whose requests to the model the runtime does not add to the credits of the session, and methods that shorten the
 * history, after which it forgets the credits of the removed turns (1.0.85).
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
 * Refuses a request that would remove the credit limit of a session, raise it above that of the fleet, or get round it. A client
 * raises it with an option, or with the answer to the runtime's question what to do at the limit.
 */
export function checkCredits(method: string, asked: Params, config: CreditConfig): void {
  const most = creditLimit(config);
  if (most === null) return;
  const allowed = `a session may use ${most} AI credits (session.maxCredits)`;
  if (UNCOUNTED.has(method)) throw methodDenied(method, `${allowed}, and this method would make the count too low`);
  if (!keeps(method, asked, most)) throw methodDenied(method, `${allowed}, and a client can only lower that`);
}

function keeps(method: string, params: Params, most: number): boolean {
  const { sessionLimits, response } = params;
  if (method !== LIMIT_ANSWER) return sessionLimits === undefined || isWithin(sessionLimits, most);
  return !changesLimit(method, params) || (actionIn(params) === "set" && isWithin(response, most));
}

/** The answer to the runtime's question what to do when a session has used up its AI credits. */
const LIMIT_ANSWER = "session.ui.handlePendingSessionLimitsExhausted";

/** Whether a request answers that question with another limit. */
export function changesLimit(method: string, params: Params): boolean {
  return method === LIMIT_ANSWER && actionIn(params) !== "cancel";
}

function actionIn({ response }: Params): unknown {
  return (response as { action?: unknown } | null | undefined)?.action;
}
