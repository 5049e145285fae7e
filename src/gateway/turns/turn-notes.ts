import { TurnEvents } from "../../sessions/use/turn-records.js";
import type { SessionUse } from "../../sessions/use/use-session.js";
import type { ClientState } from "../state/client-state.js";
import type { Turn } from "../state/turn.js";

/** Starts a turn, and records that in the audit log. */
export function startTurn({ door, user }: ClientState, turn: Turn, use: SessionUse): void {
  turn.start();
  turn.events = new TurnEvents(door.sessions.context.events, user, use);
}

/** Records the end of a turn in the audit log. Call it once the turn accepts no more prompts. */
export function turnOver({ accepted, doubts, events, outcome, over }: Turn): void {
  doubts.close();
  if (over === "lost" || over === "unloaded" || over === null)
    events?.ended({ outcome: "cut", reason: over ?? "failed" });
  else if (over === "closed") events?.ended({ outcome: "aborted", reason: "client-left" });
  else events?.ended({ outcome: accepted ? outcome : "refused", reason: null });
}
