import { deadline } from "../../runtime/clock.js";
import { colour } from "../render/colour.js";
import type { ChatParts } from "./chat.js";
import type { Conversation } from "./conversation/conversation.js";
import { WorkView } from "./work.js";

/** How long checking and deleting an unused session may take, in milliseconds. */
const LEAVE_MS = 10_000;

/** Leaves the session, and deletes it if it is unused and has no turn. The chat's signal does not interrupt this. */
export async function leaveSession(
  { window, conversations, resumeWith }: Pick<ChatParts, "window" | "conversations" | "resumeWith">,
  conversation: Conversation,
  isUnused: boolean,
): Promise<void> {
  const { id } = conversation;
  const isDeleted = await window.working(new WorkView("Leaving the session"), async (cancelled) => {
    using limit = deadline(LEAVE_MS, cancelled);
    const isEmpty = isUnused && (await hasNoTurn(conversation, limit.signal));
    await conversation.leave();
    if (!isEmpty) return false;
    try {
      await conversations.delete(id, limit.signal);
      return true;
    } catch (error) {
      if (limit.signal.aborted) return false;
      throw error;
    }
  });
  if (isDeleted) window.say("The session had no prompt, so it is deleted.", colour.dim);
  else window.sayCommand(`Continue this session: ${resumeWith(id)}`);
}

/** Whether the session has no turn. Reads the history, because another client may have used the session. */
async function hasNoTurn(conversation: Conversation, signal: AbortSignal): Promise<boolean> {
  try {
    return (await conversation.past(signal, 1)).length === 0;
  } catch {
    return false; // do not delete a session whose history cannot be read
  }
}
