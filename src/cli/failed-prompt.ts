import { FleetError, isFleetError, option, quote } from "../errors.js";
import type { Fleet } from "../fleet.js";
import { isStoreTrouble } from "../sessions/problems.js";
import type { SessionView } from "../sessions/view.js";

/** The session after a prompt that failed; null if it cannot be looked up. */
export async function whatBecameOf(
  fleet: Fleet,
  id: string,
  { user, ephemeral }: { user: string; ephemeral: boolean },
): Promise<SessionView | null> {
  try {
    const view = await fleet.sessionOf(id, user);
    // Its use has ended: it is deleted when the fleet is closed.
    return ephemeral ? { ...view, state: "gone", sizeBytes: 0 } : view;
  } catch (error) {
    if (isFleetError(error)) return null;
    throw error;
  }
}

/** The error of a first prompt, with what became of the session and how to go on. */
export function afterPrompt(error: FleetError, session: SessionView | null): FleetError {
  const { code } = error;
  const { message, suggestions } = error.describe(option);
  if (session === null) return error;
  const { id, owner, state } = session;
  const remains =
    state === "gone"
      ? `The ephemeral session ${quote(id)} was deleted.`
      : `The session ${quote(id)} was created and still exists.`;
  const goOn = state === "gone" ? [] : [`copilotfleet send ${id} TEXT --user ${owner}`, `copilotfleet delete ${id}`];
  return new FleetError(code, `${message} ${remains}`, {
    cause: error,
    suggestions: [...suggestions.filter((suggestion) => !suggestion.includes(id)), ...goOn],
    outcome: { session },
  });
}

/** The error of a session that could not be created, for somebody who sent a prompt along. */
export function withoutSession(error: unknown): never {
  if (!isFleetError(error)) throw error;
  const isUnknown: boolean = isStoreTrouble(error);
  if (isUnknown) throw error;
  const { message, suggestions } = error.describe(option);
  const text = `${message} No session was created, and the prompt was not sent.`;
  throw new FleetError(error.code, text, { cause: error, suggestions, outcome: { session: null } });
}
