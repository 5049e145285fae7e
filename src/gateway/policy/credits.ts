import type { Config } from "../../config/schema.js";
import { creditCap, isWithin } from "../../model/usage/credits.js";
import type { Params } from "../wire/client-message.js";
import { methodDenied } from "../wire/refusals.js";

/**
 * Refuses a request that would remove the cap on a session's AI credits, or raise it above that of the fleet. A client raises
 * it with an option, or with the answer to the runtime's question what to do at the cap.
 */
export function checkCredits(
  method: string,
  asked: Params,
  config: Pick<Config, "provider"> & { session: Pick<Config["session"], "maxCredits"> },
): void {
  const cap = creditCap(config);
  if (cap === null || keeps(method, asked, cap)) return;
  const allowed = `a session may use ${cap} AI credits (session.maxCredits)`;
  throw methodDenied(method, `${allowed}, and a client can only lower that`);
}

function keeps(method: string, { sessionLimits, response }: Params, cap: number): boolean {
  if (method !== "session.ui.handlePendingSessionLimitsExhausted")
    return sessionLimits === undefined || isWithin(sessionLimits, cap);
  const { action } = (response ?? {}) as { action?: unknown };
  return action === "cancel" || (action === "set" && isWithin(response, cap));
}
