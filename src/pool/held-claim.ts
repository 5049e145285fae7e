import { randomUUID } from "node:crypto";
import { threadId } from "node:worker_threads";
import { isAlive, ownIdentity } from "../runtime/process-table.js";
import type { Claim } from "../store/store.js";

/**
 * What this thread is at. Beside the module and not in it, since a program may have this package loaded twice.
 * A worker thread has the same process identity and another set: hence the thread's id in each entry.
 */
const KEY = Symbol.for("copilotfleet.moves");
const shared = globalThis as { [KEY]?: Set<string> };
shared[KEY] ??= new Set();
const moves = shared[KEY];

/**
 * A claim of this process, held until it is disposed of. A command that fails on the way dies with its claim; a process
 * that lives on, such as `serve`, may be unable to write that it has failed (a full disk), and its claim would stand for
 * ever. So each claim names what it was taken for, and counts only for as long as that is under way.
 */
export class HeldClaim implements Disposable {
  readonly claim: Claim;
  readonly #move = `${threadId}:${randomUUID()}`;

  /** Made before it is recorded: from the first moment on nobody in this process takes it for one that was left. */
  constructor() {
    moves.add(this.#move);
    this.claim = { ...ownIdentity(), move: this.#move };
  }

  [Symbol.dispose](): void {
    moves.delete(this.#move);
  }
}

/** Whether somebody is at it: the claim's process lives, and if it is this very one, it has not ended what it began. */
export function isHeld(claim: Claim | null): claim is Claim {
  if (claim === null || !isAlive(claim)) return false;
  const { pid, move } = claim;
  return pid !== process.pid || move === undefined || !move.startsWith(`${threadId}:`) || moves.has(move);
}
