import type { Ledger } from "../accounts/ledger.js";
import type { Clock } from "../base/clock.js";
import { type FleetErrorCode, isFleetError } from "../base/errors.js";
import type { Address } from "../config/rules.js";
import type { DoorOptions, FrontDoor } from "../door/door.js";
import type { DoorListeners } from "../door/state/report.js";
import type { ModelProvider } from "../providers/provider.js";
import type { InheritedListener } from "../runtime/launch/listen.js";
import type { GcResult } from "../sessions/gc/collect.js";
import type { SessionsContext } from "../sessions/problems.js";
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

interface Reports {
  log: ServeLog;
  metrics: Pick<FleetMetrics, "failed">;
}

/** @returns the code under which it counted the failure */
function countFailure({ metrics }: Reports, error: unknown): FleetErrorCode {
  const code = isFleetError(error) ? error.code : "FLEET_INTERNAL";
  metrics.failed(code);
  return code;
}

/** Logs and counts a failure that does not end the supervisor. */
export function logFailure(
  reports: Reports,
  what: string,
  error: unknown,
  fields: Readonly<Record<string, unknown>> = {},
): void {
  const code = countFailure(reports, error);
  const stack = code === "FLEET_INTERNAL" && error instanceof Error ? { stack: error.stack } : {};
  reports.log("error", `${what}: ${messageOf(error)}`, { ...fields, code, ...stack });
}

/** Does work whose failure does not end the supervisor. Logs and counts the failure. */
export async function attempt(reports: Reports, failure: string, work: () => unknown): Promise<void> {
  try {
    await work();
  } catch (error) {
    logFailure(reports, failure, error);
  }
}

/** For each regular check: the text to log when it fails, and the text to log when it succeeds again. */
const WELL_AGAIN = {
  "the servers could not be checked": "the servers can be checked again",
  "the use of the servers could not be checked": "the servers can be checked again",
  "the proxy of servers could not be started": "the proxy of servers runs again",
  "the modes of the state folder could not be restored": "the modes of the state folder are right again",
  "the shared storage is not available": "the shared storage is available again",
} as const;

/** Runs the regular checks. Logs a lasting failure, such as a full disk, once and not every second. */
export class RegularChecks {
  readonly #reports: Reports;
  /** The error messages of the checks that fail at the moment. */
  readonly #failing = new Map<keyof typeof WELL_AGAIN, string>();

  constructor(reports: Reports) {
    this.#reports = reports;
  }

  /** @returns the result of the check, or null when it fails */
  async run<T>(failure: keyof typeof WELL_AGAIN, check: () => Promise<T>): Promise<T | null> {
    try {
      const result = await check();
      if (this.#failing.delete(failure)) this.#reports.log("info", WELL_AGAIN[failure]);
      return result;
    } catch (error) {
      const message = messageOf(error);
      if (this.#failing.get(failure) === message) countFailure(this.#reports, error);
      else logFailure(this.#reports, failure, error);
      this.#failing.set(failure, message);
      return null;
    }
  }

  get failing(): string[] {
    return [...this.#failing].map(([failure, message]) => `${failure}: ${message}`);
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Times the rounds of the supervisor's loop. A change of a server starts the next round early. */
export class LoopTimer {
  readonly #clock: Clock;
  #wakeNow: () => void = () => undefined;
  #isDue = false;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Starts the next round at once. */
  wake(): void {
    this.#isDue = true;
    this.#wakeNow();
  }

  /** Starts the next round after `ms` milliseconds at the latest. */
  wakeAfter(ms: number): void {
    this.#clock.after(ms, () => this.wake());
  }

  /** Waits for the next round, at most `ms` milliseconds. */
  async next(ms: number): Promise<void> {
    if (!this.#isDue) {
      await new Promise<void>((resolve) => {
        // `ref`: this timer keeps the process alive.
        const cancel = this.#clock.after(ms, resolve, { ref: true });
        this.#wakeNow = () => {
          cancel();
          resolve();
        };
      });
    }
    this.#isDue = false;
    this.#wakeNow = () => undefined;
  }
}
