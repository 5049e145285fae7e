import { setTimeout as delay } from "node:timers/promises";
import type { Store } from "../store/ports.js";
import { isHeld } from "./claims/held-claim.js";

const POLL_MS = 20;

/**
 * Waits until no command is moving or replacing the server. Only reads the record: the caller then tries to claim it. Also
 * resolves when the signal aborts or the time is up (`untilMs`, as in `performance.now()`).
 */
export async function untilUnclaimed(
  store: Store,
  id: string,
  { untilMs = Number.POSITIVE_INFINITY, signal }: { untilMs?: number; signal: AbortSignal },
): Promise<void> {
  for (;;) {
    await delay(POLL_MS);
    if (signal.aborted || performance.now() > untilMs) return;
    const server = (await store.registry.read()).servers[id];
    const claims = [server?.claim, server?.replacement?.claim];
    if (!claims.some((claim) => isHeld(claim ?? null))) return;
  }
}
