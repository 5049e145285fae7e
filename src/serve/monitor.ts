import { setTimeout as delay } from "node:timers/promises";
import type { Config } from "../config/schema.js";
import type { ServerRecord } from "../store/store.js";
import { type Probed, Prober } from "./prober.js";

/** What a monitor finds out. The supervisor acts on it; none of these may throw. */
export interface MonitorEvents {
  /** Each probe. */
  probed(result: Probed): void;
  /** The first probe in a row that failed, and each after it below the limit. */
  sick(failures: number, reason: string): void;
  /** It answers again. */
  well(): void;
  /** It failed to answer as often in a row as is allowed. */
  hung(reason: string): void;
  /** Its process has ended, or its connection did. */
  gone(): void;
}

/** The longest wait after a probe that failed, in milliseconds: trouble is looked at more often. */
const RETRY_MS = 1_000;

/** Watches one launch of one server until it is closed. */
export class ServerMonitor {
  readonly server: ServerRecord;
  readonly #health: Config["health"];
  readonly #events: MonitorEvents;
  readonly #prober: Prober;
  readonly #closed = new AbortController();
  readonly #ended: Promise<void>;
  #failures = 0;
  #answered = false;
  #probedOnce: (() => void) | undefined;
  /** Resolves after the first probe, whatever its result. */
  readonly first: Promise<void>;

  constructor(server: ServerRecord, health: Config["health"], events: MonitorEvents) {
    this.server = server;
    this.#health = health;
    this.#events = events;
    this.#prober = new Prober(server, health, () => events.gone());
    this.first = new Promise((resolve) => {
      this.#probedOnce = resolve;
    });
    this.#ended = this.#run();
  }

  /** The port on this side of its connection, to tell it from clients' connections. */
  get localPort(): number | undefined {
    return this.#prober.localPort;
  }

  /** Whether it answered the last time it was asked. */
  get answers(): boolean {
    return this.#answered;
  }

  async #run(): Promise<void> {
    const { signal } = this.#closed;
    for (let first = true; !signal.aborted; first = false) {
      this.#tell(await this.#prober.probe(signal));
      this.#probedOnce?.();
      const { intervalMs } = this.#health;
      // Spread over the interval, so that the probes of many servers do not come together.
      const pause = first ? Math.random() * intervalMs : intervalMs;
      const waitMs = this.#failures > 0 ? Math.min(intervalMs, RETRY_MS) : pause;
      await delay(waitMs, undefined, { signal }).catch(() => undefined); // closed: the loop sees it
    }
  }

  #tell(result: Probed): void {
    if (this.#closed.signal.aborted) return;
    this.#events.probed(result);
    switch (result.kind) {
      case "ok":
        if (this.#failures > 0) this.#events.well();
        this.#failures = 0;
        this.#answered = true;
        return;
      case "failed":
        this.#failures += 1;
        this.#answered = false;
        if (this.#failures < this.#health.failures) this.#events.sick(this.#failures, result.reason);
        else if (result.hangs) this.#events.hung(result.reason);
        // One that answers may be in the middle of turns: it is called unhealthy, and ended by whoever wants that.
        else if (this.#failures === this.#health.failures) this.#events.sick(this.#failures, result.reason);
        return;
      case "gone":
        this.#events.gone();
        return;
      case "unknown":
        return;
    }
  }

  async close(): Promise<void> {
    this.#closed.abort();
    await this.#prober.close();
    await this.#ended;
  }
}
