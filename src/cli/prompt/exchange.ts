import type { Fleet } from "../../fleet/fleet.js";
import type { SessionView } from "../../sessions/view.js";
import { printTurn, type TurnOutput } from "./turn.js";

export interface ExchangeOptions {
  user: string;
  /** How long to wait for the session's lease, in milliseconds. */
  waitMs: number | undefined;
  output: TurnOutput;
}

/** Sends one prompt for `send` and `resume --prompt`, prints the reply, and leaves the session. */
export async function exchange(
  fleet: Fleet,
  sessionId: string,
  prompt: string,
  { user, waitMs, output }: ExchangeOptions,
): Promise<{ session: SessionView; reply: string }> {
  const wait = waitMs === undefined ? {} : { waitMs };
  const taken = await printTurn(output, async (options) => {
    const { reply, session } = await fleet.sessions.exchange(sessionId, prompt, { ...options, ...wait, user });
    return { ...reply, session };
  });
  return { session: taken.session, reply: taken.text };
}
