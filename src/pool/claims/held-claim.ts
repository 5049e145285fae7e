import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { threadId } from "node:worker_threads";
import type { Claim } from "../../model/process.js";
import type { ServerRecord } from "../../model/server.js";
import { isAlive, ownIdentity } from "../../runtime/process/process-table.js";
import type { Store } from "../../store/ports.js";

/**
 * The transitions that this thread has begun and not ended. The set is global, because a program may load this package
 * twice. A worker thread has the same process identity but another set, so each entry contains the thread's id.
 */
const KEY = Symbol.for("copilotfleet.moves");
const shared = globalThis as { [KEY]?: Set<string> };
shared[KEY] ??= new Set();
const moves = shared[KEY];

/**
 * A claim of this process, held until it is disposed. A process that keeps running, such as `serve`, may be unable to
 * record a failure (on a full disk), and its claim would stay for ever. So each claim names the transition it was taken
 * for, and counts only while that transition is under way.
 */
export class HeldClaim implements Disposable {
  readonly claim: Claim;
  readonly #move = `${threadId}:${randomUUID()}`;

  /** Register the transition before the claim is recorded, so that this process never takes the claim for abandoned. */
  constructor() {
    moves.add(this.#move);
    this.claim = { ...ownIdentity(), move: this.#move };
  }

  [Symbol.dispose](): void {
    moves.delete(this.#move);
  }
}

/** Whether a claim counts: its process is alive and, if this thread took it, its transition has not ended. */
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

/**
 * Waits until no command is moving or replacing the server, the signal aborts, or `untilMs` (`performance.now()`) is
 * over. The caller then tries to claim the server.
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
    if (!isHeld(server?.claim ?? null) && !isHeld(server?.replacement?.claim ?? null)) return;
  }
}
