import type { TurnAllowance } from "../../usage/limits/turn-allowance.js";
import type { SessionsContext } from "../context.js";

/**
 * Takes up the limits of a user for one turn. Null if none applies, which costs no more than a look for the record of the
 * user's own limits.
 *
 * @throws as `TurnAllowance.take`
 */
export async function allowanceFor(context: SessionsContext, user: string): Promise<TurnAllowance | null> {
  const { store, config } = context;
  const { turnsPerMinute, concurrentTurns, tokensPerDay, tokensPerMonth } = config.limits.default;
  const record = await store.limits.read(user);
  const isFree = [turnsPerMinute, concurrentTurns, tokensPerDay, tokensPerMonth].every((max) => max === null);
  if (record === null && isFree) return null;
  const { TurnAllowance: Loaded } = await import("../../usage/limits/turn-allowance.js");
  return await Loaded.take(context, user, record);
}
