import type { Ledger } from "../accounts/ledger.js";
import type { Clock } from "../base/clock.js";
import type { Address } from "../config/rules.js";
import type { DoorOptions, FrontDoor } from "../door/door.js";
import type { DoorListeners } from "../door/state/report.js";
import type { ModelProvider } from "../providers/provider.js";
import type { InheritedListener } from "../runtime/launch/listen.js";
import type { GcResult } from "../sessions/gc/collect.js";
import type { SessionsContext } from "../sessions/problems.js";
import { type LoopTimer, logFailure } from "./failures.js";
import type { SampleRing } from "./report/measurements.js";
import type { FleetMetrics } from "./report/metrics.js";
import type { Probes } from "./report/probes.js";

export type LogLevel = "debug" | "info" | "warn" | "error";

/** Logs one event of the supervisor. The fields may contain ids, but never the content of a conversation. */
export type ServeLog = (level: LogLevel, message: string, fields?: Readonly<Record<string, unknown>>) => void;

/** The parts of the fleet that its supervisor works with. */
export interface ServedFleet
  extends Pick<SessionsContext, "store" | "config" | "directory" | "pool" | "requests" | "events"> {
  /** The model requests of this process. */
  provider: Pick<ModelProvider, "requests">;
  ledger: Pick<Ledger, "counted">;
  stateRoot: string;
  clock: Clock;
  log: ServeLog;
  /** Opens the front door and the HTTP API. `fleet/` provides this object, because `serve/` may not import `fleet/`. */
  doors: {
    open(options: DoorOptions): Promise<FrontDoor>;
    openHttp(options: ServedHttpOptions): Promise<ServedHttp>;
  };
  /** The address on which to open the front door. Null if this host has no front door. */
  listen: Address | InheritedListener | null;
  /** The address on which to open the HTTP API. Null if this host has no HTTP API. */
  http: Address | InheritedListener | null;
  /** This host's own gc, and its samples. */
  host: {
    gc(request: { ttlMs: number | null; dryRun: boolean }, call: { signal: AbortSignal }): Promise<GcResult>;
    /** The samples of the host, which its HTTP API and the other hosts read. */
    readonly ring: SampleRing;
  };
  /** Returns the warnings that the fleet has collected since the last call, for the log. */
  takeWarnings(): string[];
  /** All hosts of the fleet. */
  hosts: { learnTokenEnds(signal: AbortSignal): Promise<{ host: string; error: unknown }[]> };
}

/** The collaborators and settings that all parts of the supervisor share. */
export interface ServeContext extends ServedFleet {
  metrics: FleetMetrics;
  state: ServeState;
}

interface ServedHttpOptions extends DoorListeners {
  listen: Address | InheritedListener;
  probes: Probes;
  signal: AbortSignal;
}

/** An open address of the HTTP API. `HttpDoor` in `http/` implements it, because `serve/` may not import `http/`. */
interface ServedHttp {
  readonly address: Address;
  readonly url: string;
  readonly streams: StreamCounts;
  /** Begins no new work, and waits up to `timeout` milliseconds for the requests that are being handled. */
  drain(request: { timeout: number }): Promise<unknown>;
  close(): Promise<unknown>;
}

/** The streams of the HTTP API: how many are open, and how many events and slow clients there have been so far. */
export interface StreamCounts {
  open: number;
  events: number;
  slow: number;
}

export class ServeState {
  phase: "starting" | "serving" | "draining" = "starting";
  /** The front door while it is open. */
  door: FrontDoor | undefined;
  /** The HTTP API while it is open. */
  http: ServedHttp | undefined;
}

/** Runs the supervisor's operations on servers, at most one at a time for each server. */
export class Operations {
  readonly #context: Pick<ServeContext, "log" | "metrics">;
  readonly #timer: LoopTimer;
  readonly #stopping: AbortSignal;
  readonly #running = new Map<string, Promise<void>>();

  constructor(context: Pick<ServeContext, "log" | "metrics">, timer: LoopTimer, stopping: AbortSignal) {
    this.#context = context;
    this.#timer = timer;
    this.#stopping = stopping;
  }

  isBusy(server: string): boolean {
    return this.#running.has(server);
  }

  /**
   * Begins `work` on a server, unless another operation on that server is in progress.
   *
   * @param failure the text to log after the server's id if `work` fails, such as "it could not be stopped"
   */
  begin(failure: string, server: string, work: () => Promise<void>): void {
    if (this.#running.has(server)) return;
    const running = work()
      .catch((error: unknown) => this.#report(failure, server, error))
      .finally(() => {
        this.#running.delete(server);
        this.#timer.wake();
      });
    this.#running.set(server, running);
  }

  #report(failure: string, server: string, error: unknown): void {
    const message = `server ${server}: ${failure}`;
    // An operation that the end of `serve` cancelled has not failed.
    if (this.#stopping.aborted)
      this.#context.log("info", `${message}, because serve is ending`, { server, error: String(error) });
    else logFailure(this.#context, message, error, { server });
  }

  /** Resolves when no operation is in progress. */
  async settled(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running.values());
  }
}
