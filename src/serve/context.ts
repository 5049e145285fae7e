import type { Address } from "../config/rules.js";
import type { DoorOptions, FrontDoor } from "../gateway/door.js";
import type { DoorListeners } from "../gateway/state/door/report.js";
import type { ModelProvider } from "../models/provider.js";
import type { Clock } from "../runtime/clock.js";
import type { InheritedListener } from "../runtime/launch/listen.js";
import type { SessionsContext } from "../sessions/context.js";
import type { GcResult } from "../sessions/gc/collect.js";
import type { Ledger } from "../usage/ledger/ledger.js";
import type { FleetMetrics } from "./report/metrics.js";
import type { Probes } from "./report/probes.js";
import type { SampleRing } from "./report/samples.js";

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

export interface ServedHttpOptions extends DoorListeners {
  listen: Address | InheritedListener;
  probes: Probes;
  signal: AbortSignal;
}

/** An open address of the HTTP API. `HttpDoor` in `api/` implements it, because `serve/` may not import `api/`. */
export interface ServedHttp {
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
