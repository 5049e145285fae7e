import { asSentence } from "../../config/values/text.js";
import { type ErrorText, type FleetError, isFleetError, quote, type Suggestion } from "../../errors.js";
import type { Fleet } from "../../fleet/fleet.js";
import { isStoreTrouble } from "../../sessions/problems.js";
import type { SessionView } from "../../sessions/view.js";

/** Returns the state of a session after its prompt failed; null if the fleet cannot read it. */
export async function whatBecameOf(
  fleet: Fleet,
  id: string,
  { user, ephemeral }: { user: string; ephemeral: boolean },
): Promise<SessionView | null> {
  try {
    const view = await fleet.sessions.get(id, { user });
    // An ephemeral session is deleted when the fleet closes, because its only prompt failed. So report it as gone.
    return ephemeral ? { ...view, state: "gone", sizeBytes: 0 } : view;
  } catch (error) {
    if (isFleetError(error)) return null;
    throw error;
  }
}

/** Adds to the error of a session's first prompt whether the session still exists and how to continue. */
export function afterPrompt(error: FleetError, session: SessionView | null): FleetError {
  if (session === null) return error;
  const { id, owner, state } = session;
  const remains =
    state === "gone"
      ? `The ephemeral session ${quote(id)} was deleted.`
      : `The session ${quote(id)} was created and still exists.`;
  // While the store fails, for example on a full disk, another prompt fails in the same way.
  const send: Suggestion[] = isStoreTrouble(error) ? [] : [`copilotfleet send ${id} TEXT --user ${owner}`];
  const goOn: Suggestion[] = state === "gone" ? [] : [...send, `copilotfleet delete ${id}`];
  const change = ({ message, suggestions }: ErrorText) => ({
    message: `${asSentence(message)} ${remains}`,
    suggestions: [...suggestions.filter((suggestion) => !suggestion.includes(id)), ...goOn],
  });
  return error.reworded(change, { session });
}

/** Rethrows the error of a `create --prompt` that created no session. Adds this fact, and that no prompt was sent. */
export function withoutSession(error: unknown): never {
  // If the store failed, nobody knows whether it recorded the session, so add nothing.
  const isUnknown: boolean = isStoreTrouble(error);
  if (isUnknown || !isFleetError(error)) throw error;
  const change = ({ message }: ErrorText) => ({
    message: `${asSentence(message)} No session was created, and the prompt was not sent.`,
  });
  throw error.reworded(change, { session: null });
}
