import { setTimeout as delay } from "node:timers/promises";
import type { Store } from "../store/store.js";
import { isHeld } from "./held-claim.js";

const POLL_MS = 20;

/**
 * Waits until nobody moves the server from state to state any more, or replaces it, by reading alone: who wants to be next
 * then tries. Resolves also when the time is up or the signal aborts.
 */
export async function untilUnclaimed(
  store: Store,
  id: string,
  { untilMs = Number.POSITIVE_INFINITY, signal }: { untilMs?: number; signal: AbortSignal },
): Promise<void> {
  for (;;) {
    await delay(POLL_MS);
    if (signal.aborted || performance.now() > untilMs) return;
    const server = (await store.readRegistry()).servers[id];
    const claims = [server?.claim, server?.replacement?.claim];
    if (!claims.some((claim) => isHeld(claim ?? null))) return;
  }
}
