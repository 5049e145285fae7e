import type { TurnOutcome } from "../../model/session.js";

/** How a host is used at one moment, and what has happened on it since the previous sample. */
export interface Sample {
  /** ISO 8601, UTC. */
  at: string;
  /** The turns that ended since the previous sample. */
  turns: Record<TurnOutcome, number>;
  /**
   * Percentiles of the durations of the turns that ended in the last minute, in milliseconds. Null if no turn ended.
   */
  turnMs: { p50: number | null; p95: number | null };
  turnsInFlight: number;
  /** Servers that run. */
  servers: number;
  /** Sessions in the memory of these servers. */
  activeSessions: number;
  /** Sessions that were unloaded since the previous sample, because a server had too many sessions in memory. */
  evictions: number;
  /** The private memory of the servers and of everything that their sessions started, in bytes. */
  memoryBytes: number;
}

export type Gauges = Pick<Sample, "turnsInFlight" | "servers" | "activeSessions" | "memoryBytes">;

/** The maximum number of samples in memory: one hour of samples at the default interval of the health checks. */
const MOST = 720;
/** The percentiles cover the turns that ended within this time, but at most `MOST_TURNS` turns. */
const WINDOW_MS = 60_000;
const MOST_TURNS = 10_000;

/** The last samples of this host, in memory. Empty unless `serve` with the HTTP API runs in this process. */
export class SampleRing {
  #isOn = false;
  #samples: Sample[] = [];
  #turns = noTurns();
  #evictions = 0;
  /** The last turns that ended, for the percentiles. */
  #ended: { seenAtMs: number; durationMs: number }[] = [];

  start(): void {
    this.#isOn = true;
  }

  /** @param nowMs Unix time in milliseconds */
  turnEnded(outcome: TurnOutcome, durationMs: number, nowMs: number): void {
    if (!this.#isOn) return;
    this.#turns[outcome] += 1;
    this.#ended.push({ seenAtMs: nowMs, durationMs });
    if (this.#ended.length > MOST_TURNS) this.#ended.shift();
  }

  evicted(count: number): void {
    if (this.#isOn) this.#evictions += count;
  }

  /** @param nowMs Unix time in milliseconds */
  take(gauges: Gauges, nowMs: number): void {
    if (!this.#isOn) return;
    this.#ended = this.#ended.filter(({ seenAtMs }) => nowMs - seenAtMs < WINDOW_MS);
    const sorted = this.#ended.map(({ durationMs }) => durationMs).sort((a, b) => a - b);
    const turnMs = { p50: percentile(sorted, 0.5), p95: percentile(sorted, 0.95) };
    const at = new Date(nowMs).toISOString();
    this.#samples.push({ at, turns: this.#turns, turnMs, evictions: this.#evictions, ...gauges });
    if (this.#samples.length > MOST) this.#samples.shift();
    this.#turns = noTurns();
    this.#evictions = 0;
  }

  /** The samples after a time, the oldest first. Without a time, all of them. */
  after(time?: string): Sample[] {
    const afterMs = time === undefined ? Number.NEGATIVE_INFINITY : Date.parse(time);
    return this.#samples.filter(({ at }) => Date.parse(at) > afterMs);
  }
}

function noTurns(): Record<TurnOutcome, number> {
  return { completed: 0, failed: 0, aborted: 0, cut: 0 };
}

/**
 * The smallest value such that at least this share of all values are less than or equal to it. Null if there are no
 * values.
 */
function percentile(sorted: readonly number[], share: number): number | null {
  return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? null;
}
