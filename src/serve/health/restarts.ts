import type { Config } from "../../config/schema.js";
import type { ServerRecord } from "../../model/server.js";
import type { Clock } from "../../runtime/clock.js";
import type { ServeContext } from "../context.js";
import type { LoopTimer } from "../loop-timer.js";
import type { RestartReason } from "../report/metrics.js";

/** Decides when to restart a server that has ended, and when to give up on it. The keys of all maps are server ids. */
export class Restarts {
  readonly #clock: Clock;
  readonly #health: Config["health"];
  readonly #timer: LoopTimer;
  /** The time (`clock.now()`) at which to restart each server. */
  readonly #due = new Map<string, number>();
  /** For each server that we are about to restart, the reason why it ended. The metrics show it. */
  readonly #reasons = new Map<string, RestartReason>();
  /**
   * How many starts in a row failed. The server's record does not count a start that failed before anything was recorded.
   */
  readonly #refused = new Map<string, number>();
  /**
   * How many starts in a row failed because of a limit of this machine. Such starts are not a reason to give up on a
   * server.
   */
  readonly #starved = new Map<string, number>();
  readonly #givenUp = new Set<string>();

  constructor({ clock, config }: Pick<ServeContext, "clock" | "config">, timer: LoopTimer) {
    this.#clock = clock;
    this.#health = config.health;
    this.#timer = timer;
  }

  /** Records why a server has ended. */
  note(id: string, reason: RestartReason): void {
    this.#reasons.set(id, reason);
  }

  /** Forgets the failures of a server that somebody started by hand. */
  forgive(id: string): void {
    this.#refused.delete(id);
    this.#givenUp.delete(id);
  }

  /** Cancels the next start of a server, because it already runs or should not run. */
  cancel(id: string): void {
    this.#due.delete(id);
  }

  isHopeless(server: ServerRecord): boolean {
    return server.state === "failed" && this.#inARow(server) > this.#health.restarts;
  }

  /** @returns false if we had already given up on the server */
  giveUp(id: string): boolean {
    if (this.#givenUp.has(id)) return false;
    this.#givenUp.add(id);
    return true;
  }

  /** Whether it is time to start the server. The first call sets that time. */
  isDue(server: ServerRecord): boolean {
    const crashes = server.state === "failed" ? this.#inARow(server) : 0;
    return this.#clock.now() >= (this.#due.get(server.id) ?? this.#schedule(server.id, crashes));
  }

  #inARow({ id, crashes }: ServerRecord): number {
    return Math.max(crashes ?? 0, this.#refused.get(id) ?? 0);
  }

  begin(id: string): RestartReason {
    const reason = this.#reasons.get(id) ?? "start";
    this.#due.delete(id);
    this.#reasons.delete(id);
    return reason;
  }

  succeeded(id: string): void {
    this.#refused.delete(id);
    this.#starved.delete(id);
  }

  /**
   * Schedules the next start after a failed start. @param isStarved whether a limit of this machine made the start fail
   */
  failed({ id, crashes }: ServerRecord, isStarved: boolean): void {
    const count = isStarved ? (this.#starved.get(id) ?? 0) + 1 : (this.#refused.get(id) ?? crashes ?? 0) + 1;
    (isStarved ? this.#starved : this.#refused).set(id, count);
    this.#schedule(id, isStarved ? count + 1 : count);
  }

  #schedule(id: string, crashes: number): number {
    const waitMs = backoffMs(crashes, Math.min(FIRST_MS, this.#health.intervalMs / 5));
    const due = this.#clock.now() + waitMs;
    this.#due.set(id, due);
    if (waitMs > 0) this.#timer.wakeAfter(waitMs);
    return due;
  }
}

/** The wait before the second restart in a row, in milliseconds. It is shorter if servers are probed more often than usual. */
const FIRST_MS = 1_000;
/** The longest wait between two starts of a server that keeps ending, in milliseconds. */
const LONGEST_MS = 60_000;

/**
 * How long to wait, in milliseconds, before we restart a server that ended `crashes` times in a row. A random factor
 * between 0.5 and 1 prevents servers that ended together from starting again together ("equal jitter",
 * https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
 */
export function backoffMs(crashes: number, baseMs: number, random: () => number = Math.random): number {
  if (crashes <= 1) return 0;
  const full = Math.min(LONGEST_MS, baseMs * 2 ** Math.min(crashes - 2, 30));
  return full * (0.5 + random() / 2);
}
