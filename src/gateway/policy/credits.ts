import { type CreditConfig, creditLimit, isWithin } from "../../model/usage/credits.js";
import type { Params } from "../wire/client-message.js";
import { methodDenied } from "../wire/refusals.js";

/**
 * Methods that ask the model outside a turn. The runtime counts these model requests in the session's AI credits
 * (1.0.85).
 */
const ASKING = new Set(
  `session.history.compact session.mcp.executeSampling session.fleet.start session.tasks.startAgent
  session.tasks.sendMessage session.commands.invoke session.commands.enqueue session.commands.execute
  session.factory.run session.factory.resume session.factory.agent session.workflow.run session.workflow.resume
  session.workflow.agent session.tools.execute session.sendSystemNotification`.split(/\s+/),
);

/**
 * Methods after which a session's count of AI credits is too low (1.0.85). Some make model requests that the runtime
 * does not count. The others shorten the history, and the runtime then no longer counts the credits of the removed
 * turns.
 */
const UNCOUNTED = new Set(
  `session.ui.ephemeralQuery session.history.summarizeForHandoff session.history.truncate session.history.rewind
  session.history.clearContext`.split(/\s+/),
);

/** Whether model requests may follow a method although no turn of the fleet runs. */
export function mayAskModel(method: string): boolean {
  return ASKING.has(method) || UNCOUNTED.has(method);
}

/** Whether a method asks the model outside a turn, so that the session must have AI credits left. */
export function asksModel(method: string): boolean {
  return ASKING.has(method);
}

/**
 * Refuses a request that would remove a session's credit limit, raise it above the fleet's limit, or bypass it. A
 * client can change the limit with the option `sessionLimits`, or with its answer when the runtime asks what to do at
 * the limit.
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

/** The method by which a client answers the runtime's question what to do when a session has used up its AI credits. */
const LIMIT_ANSWER = "session.ui.handlePendingSessionLimitsExhausted";

/** Whether a request is an answer by {@link LIMIT_ANSWER} that changes the limit. Every action but `cancel` does. */
export function changesLimit(method: string, params: Params): boolean {
  return method === LIMIT_ANSWER && actionIn(params) !== "cancel";
}

function actionIn({ response }: Params): unknown {
  return (response as { action?: unknown } | null | undefined)?.action;
}
