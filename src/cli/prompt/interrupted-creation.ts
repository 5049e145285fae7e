import type { CopilotSession } from "@github/copilot-sdk";
import type { Fleet } from "../../fleet/fleet.js";
import { isStoreTrouble } from "../../sessions/problems.js";
import { Interrupted } from "./interrupted.js";

interface Interruptible {
  user: string;
  /** The signal that Ctrl-C aborts. */
  signal: AbortSignal;
}

/** Runs `create`. If the user interrupts it, deletes the session, and notes on the Interrupted error what remains. */
export async function createInterruptibly(
  fleet: Fleet,
  { user, signal }: Interruptible,
  create: () => Promise<CopilotSession>,
): Promise<CopilotSession> {
  const begunMs = Date.now();
  try {
    const session = await create();
    // The user may have pressed Ctrl-C when it was too late to cancel the creation.
    if (signal.aborted) await fleet.sessions.delete([session.sessionId], { user });
    signal.throwIfAborted();
    return session;
  } catch (error) {
    const { reason } = signal;
    // If the store failed, nobody knows whether it recorded the session.
    const session = isStoreTrouble(error)
      ? `a session may have been created. To see it: copilotfleet list --user ${user}`
      : "no session was created.";
    if (reason instanceof Interrupted)
      reason.note = `Interrupted: ${session}${await serverNote(fleet, user, begunMs).catch(() => "")}`;
    throw error;
  }
}

/** A sentence about the user's server if it was started since `sinceMs` and still runs; otherwise empty. */
async function serverNote(fleet: Fleet, user: string, sinceMs: number): Promise<string> {
  const servers = await fleet.servers.list({ user });
  const started = servers.find(({ startedAt }) => startedAt !== null && Date.parse(startedAt) >= sinceMs);
  return started === undefined ? "" : ` Its server still runs. To stop it: copilotfleet stop ${started.id}`;
}
