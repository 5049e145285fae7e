import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { threadId } from "node:worker_threads";
import type { Claim } from "../../model/process.js";
import type { ServerRecord } from "../../model/server.js";
import { isAlive, ownIdentity } from "../../runtime/process/process-table.js";
import type { Store } from "../../store/ports.js";

/**
 * The moves of this thread: changes of a server's state that have begun and not ended. The set is a property of
 * `globalThis`, because a program may load this package twice. Each thread has its own set, so each move contains its
 * thread's id. A thread then never mistakes another thread's move for one that has ended.
 */
const KEY = Symbol.for("copilotfleet.moves");
const shared = globalThis as { [KEY]?: Set<string> };
shared[KEY] ??= new Set();
const moves = shared[KEY];

/**
 * A claim of this process. It counts until it is disposed. If `serve` cannot record a failure, for example on a full disk,
 * its claim stays in the record. Because `serve` keeps running, this claim would block the server for ever. So each claim
 * names the move for which it was taken, and counts only during that move.
 */
export class HeldClaim implements Disposable {
  readonly claim: Claim;
  readonly #move = `${threadId}:${randomUUID()}`;

  /**
   * Adds the move here, before anybody can record the claim, because a recorded claim whose move is not in the set does
   * not count.
   */
  constructor() {
    moves.add(this.#move);
    this.claim = { ...ownIdentity(), move: this.#move };
  }

  [Symbol.dispose](): void {
    moves.delete(this.#move);
  }
}

/**
 * Whether a claim counts: its process is alive. If this thread made the claim, its move must also still be in progress.
 */
export function isHeld(claim: Claim | null): claim is Claim {
  if (claim === null || !isAlive(claim)) return false;
  const { pid, move } = claim;
  return pid !== process.pid || move === undefined || !move.startsWith(`${threadId}:`) || moves.has(move);
}

/** Whether a command is moving the server from one state to the next. */
export function isClaimed({ claim }: ServerRecord): boolean {
  return isHeld(claim);
}

const POLL_MS = 20;

/** Waits until nobody has a claim on the server, the signal aborts, or `performance.now()` has reached `untilMs`. */
export async function untilUnclaimed(
  store: Store,
  id: string,
  { untilMs = Number.POSITIVE_INFINITY, signal }: { untilMs?: number; signal: AbortSignal },
): Promise<void> {
  for (;;) {
    await delay(POLL_MS);
    if (signal.aborted || performance.now() > untilMs) return;
    const server = (await store.registry.read()).servers[id];
    if (!isHeld(server?.claim ?? null) && !isHeld(server?.replacement?.claim ?? null)) return;
  }
}
