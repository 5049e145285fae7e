import { setTimeout as delay } from "node:timers/promises";
import type { Config } from "../../config/schema.js";
import type { ServerRecord } from "../../model/server.js";
import { type Probed, Prober } from "./prober.js";

/** Receives the findings of a monitor, for the supervisor to act on. None of these may throw. */
export interface MonitorEvents {
  /** After each probe. */
  probed(result: Probed): void;
  /**
   * After each failed probe while the failures in a row are below the limit. Also at the limit, if the server still answers
   * pings.
   */
  sick(failures: number, reason: string): void;
  /** The server answers again. */
  well(): void;
  /** The server does not answer pings, and has reached the limit of failures in a row. */
  hung(reason: string): void;
  /** The server's process or its connection has ended. */
  gone(): void;
}

/** The longest wait after a failed probe, in milliseconds, because a server in trouble is probed more often. */
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

  /** The local port of its connection, to distinguish it from clients' connections. */
  get localPort(): number | undefined {
    return this.#prober.localPort;
  }

  /** Whether the server answered the last probe. */
  get answers(): boolean {
    return this.#answered;
  }

  async #run(): Promise<void> {
    const { signal } = this.#closed;
    for (let first = true; !signal.aborted; first = false) {
      this.#tell(await this.#prober.probe(signal));
      this.#probedOnce?.();
      const { intervalMs } = this.#health;
      // Spread the probes over the interval, so that those of many servers do not come at the same time.
      const pause = first ? Math.random() * intervalMs : intervalMs;
      const waitMs = this.#failures > 0 ? Math.min(intervalMs, RETRY_MS) : pause;
      await delay(waitMs, undefined, { signal }).catch(() => undefined); // closed: the loop's condition ends it
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
        // A server that answers pings may be in the middle of turns. So only report it, and let a person decide whether to
        // stop it.
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
