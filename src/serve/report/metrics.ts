import type { Counter, LabelValues, Registry } from "prom-client";
import { ERRORS, type FleetErrorCode } from "../../base/errors.js";
import type { EventCounts } from "../../base/event.js";
import { SERVER_STATES, type ServerState } from "../../base/server.js";
import { TURN_OUTCOMES, type TurnOutcome } from "../../base/session.js";
import type { UsageCounts } from "../../base/usage.js";
import { LIMITED, USER_LIMITS } from "../../base/user-limits.js";
import type { RequestReport } from "../../door/state/report.js";
import { SIGN_ON_RESULTS, type SignOnReport, WAYS } from "../../identity/sign-on.js";
import type { ModelRequests } from "../../providers/gateway/exchange.js";
import { EGRESS_RESULTS } from "../../sandbox/network/outbound.js";
import type { GcResult } from "../../sessions/gc/collect.js";
import { REQUEST_KINDS, REQUEST_OUTCOMES } from "../../sessions/requests.js";
import type { StreamCounts } from "../context.js";

/** Why a server was started again. `start`: its previous start failed. */
const RESTART_REASONS = ["crash", "hang", "start"] as const;
const RECYCLE_REASONS = ["memory", "age"] as const;
const SERVER_LIMITS = ["memory", "processes", "disk"] as const;
const EVENT_RESULTS = ["written", "lost"] as const;
const OK_OR_FAILED = ["ok", "failed"] as const;

export type RestartReason = (typeof RESTART_REASONS)[number];
export type RecycleReason = (typeof RECYCLE_REASONS)[number];

const TURN_BUCKETS_SECONDS = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600];
const REQUEST_BUCKETS_SECONDS = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60];
const SIGN_ON_BUCKETS_SECONDS = [0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1, 5];
const PROBE_BUCKETS_SECONDS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5];

const TOKENS = { input: "inputTokens", cached: "cacheReadTokens", output: "outputTokens" } as const;
const TOKEN_KINDS = Object.keys(TOKENS) as (keyof typeof TOKENS)[];

/**
 * The metrics of one supervisor, in the text format of Prometheus. `docs/monitoring.md` explains each metric.
 *
 * Every series exists from the start, so that an alert on an increase also sees the first increase. So all values of
 * labels must be known in advance. Ids of users, sessions or servers are never labels, because everybody who reads the
 * metrics would see who works here, and the number of series would grow without end.
 */
export class FleetMetrics {
  readonly contentType: string;
  readonly #registry: Registry;
  /** The metrics by their names in {@link seriesOf}. */
  readonly series: ReturnType<typeof seriesOf>;
  static async open(options: { version: string }): Promise<FleetMetrics> {
    // Import the library only here, because no command except `serve` uses it.
    return new FleetMetrics(await import("prom-client"), options.version);
  }

  private constructor(library: typeof import("prom-client"), version: string) {
    // Do not use the library's global registry: it belongs to the program that imports this package.
    this.#registry = new library.Registry();
    this.contentType = this.#registry.contentType;
    this.series = seriesOf(library, this.#registry, version);
    for (const state of SERVER_STATES) this.series.servers.set({ state }, 0);
    // A zero would cause a false alarm, so these series exist only after their first measurement.
    const { diskFreeBytes, healthy, ready } = this.series;
    for (const unknown of [diskFreeBytes, healthy, ready]) unknown.remove();
  }

  /**
   * Sets the gauges, and the counters whose totals other parts keep. Each key of `gauges` is also the name of a series below.
   */
  observe({ serversByState, diskFreeBytes, modelRequests, streams, usage, events, ...gauges }: MetricsSnapshot): void {
    const { series } = this;
    series.modelInFlight.set(modelRequests.inFlight);
    total(series.modelFailures, modelRequests.failed);
    total(series.turnsCounted, usage.turns);
    total(series.modelRequests, usage.requests);
    for (const kind of TOKEN_KINDS) totalOf(series.modelTokens, { kind }, usage[TOKENS[kind]] ?? 0);
    series.httpStreams.set(streams.open);
    total(series.streamEvents, streams.events);
    total(series.slowStreams, streams.slow);
    for (const result of EVENT_RESULTS) totalOf(series.events, { result }, events[result]);
    series.eventsWaiting.set(events.waiting);
    for (const state of SERVER_STATES) series.servers.set({ state }, serversByState[state]);
    if (diskFreeBytes === null) series.diskFreeBytes.remove();
    else series.diskFreeBytes.set(diskFreeBytes);
    for (const [name, value] of Object.entries(gauges)) series[name as keyof typeof gauges].set(value);
  }

  /** Records the results of `/healthz` and `/readyz`. */
  judged(verdict: { healthy: boolean; ready: boolean }): void {
    this.series.healthy.set(verdict.healthy ? 1 : 0);
    this.series.ready.set(verdict.ready ? 1 : 0);
  }

  /** Counts a finished request at the front door. `method` is one of the protocol's methods, or `unknown`. */
  requested(method: string, outcome: RequestReport["outcome"], seconds: number): void {
    this.series.requests.inc({ method, outcome });
    if (outcome !== "abandoned") this.series.requestSeconds.observe({ method }, seconds);
  }

  /** Counts a check of a credential at the front door. */
  signedOn(via: SignOnReport["via"], result: SignOnReport["result"], seconds: number): void {
    this.series.signOns.inc({ via, result });
    this.series.signOnSeconds.observe({ via }, seconds);
  }

  probed(outcome: (typeof OK_OR_FAILED)[number], seconds: number): void {
    this.series.probes.inc({ outcome });
    this.series.probeSeconds.observe(seconds);
  }

  turnEnded(outcome: TurnOutcome, seconds: number): void {
    this.series.turns.inc({ outcome });
    this.series.turnSeconds.observe(seconds);
  }

  /** Counts a completed run of gc. A run with unreadable sessions counts as failed, so that somebody repairs them. */
  gcRan({ deleted, freedBytes, unreadable }: Pick<GcResult, "deleted" | "freedBytes" | "unreadable">): void {
    this.series.gcDeleted.inc(deleted.length);
    this.series.gcFreedBytes.inc(freedBytes);
    this.series.gcRuns.inc({ outcome: unreadable.length > 0 ? "failed" : "ok" });
    if (unreadable.length === 0) this.series.gcLastSuccess.set(Date.now() / 1000);
  }

  failed(code: FleetErrorCode): void {
    this.series.errors.inc({ code });
  }

  async text(): Promise<string> {
    return await this.#registry.metrics();
  }
}

function total(counter: Counter, value: number): void {
  counter.reset();
  counter.inc(value);
}

function totalOf<L extends string>(counter: Counter<L>, labels: LabelValues<L>, value: number): void {
  counter.remove(labels);
  counter.inc(labels, value);
}

function seriesOf(library: typeof import("prom-client"), registry: Registry, version: string) {
  const named = (name: string, help: string) => ({ name: `copilotfleet_${name}`, help, registers: [registry] });
  const gauge = (name: string, help: string) => new library.Gauge(named(name, help));
  const counter = (name: string, help: string) => new library.Counter(named(name, help));
  const counterBy = <L extends string>(name: string, label: L, values: readonly string[], help: string) => {
    const made = new library.Counter<string>({ ...named(name, help), labelNames: [label] });
    for (const value of values) made.inc({ [label]: value }, 0);
    return made as Counter<L>;
  };
  const histogram = (name: string, buckets: number[], help: string) =>
    new library.Histogram({ ...named(name, help), buckets });

  const signOns = new library.Counter({
    ...named("sign_ons_total", "Credentials that were checked at the front door."),
    labelNames: ["via", "result"] as const,
  });
  const signOnSeconds = new library.Histogram({
    ...named("sign_on_duration_seconds", "How long the checks of credentials took."),
    labelNames: ["via"] as const,
    buckets: SIGN_ON_BUCKETS_SECONDS,
  });
  for (const via of WAYS) {
    signOnSeconds.zero({ via });
    for (const result of SIGN_ON_RESULTS) signOns.inc({ via, result }, 0);
  }
  const agentRequests = new library.Counter({
    ...named("agent_requests_total", "Permissions and questions of the agent that have ended."),
    labelNames: ["kind", "outcome"] as const,
  });
  for (const kind of REQUEST_KINDS) for (const outcome of REQUEST_OUTCOMES) agentRequests.inc({ kind, outcome }, 0);
  const limits = [...new Set([...LIMITED.flatMap((limited) => [limited, `total.${limited}`]), ...USER_LIMITS])];
  new library.Gauge({
    ...named("supervisor_memory_bytes", "Memory of the supervisor itself."),
    collect() {
      this.set(process.memoryUsage.rss());
    },
  });
  gauge("supervisor_start_time_seconds", "When the supervisor's process started.").set(
    Date.now() / 1000 - process.uptime(),
  );
  new library.Gauge({
    ...named("build_info", "The versions of copilotfleet and Node.js; always 1."),
    labelNames: ["version", "node"],
  }).set({ version, node: process.versions.node }, 1);

  return {
    servers: new library.Gauge({ ...named("servers", "Servers in the registry."), labelNames: ["state"] }),
    unrestricted: gauge("servers_without_sandbox", "Running servers without a sandbox."),
    overDisk: gauge("servers_over_disk_limit", "Running servers whose files take more than sandbox.disk allows."),
    serverLimits: counterBy("server_limits_reached_total", "limit", SERVER_LIMITS, "Limits that servers reached."),
    egress: counterBy("egress_connections_total", "result", EGRESS_RESULTS, "Connections that servers asked for."),
    activeSessions: gauge("sessions_active", "Sessions loaded in a server's memory."),
    turnsInFlight: gauge("turns_in_flight", "Turns that have begun and not ended."),
    turnsStalled: gauge("turns_stalled", "Turns in flight without a sign of life for too long."),
    turns: counterBy("turns_total", "outcome", TURN_OUTCOMES, "Turns that have ended."),
    turnSeconds: histogram(
      "turn_duration_seconds",
      TURN_BUCKETS_SECONDS,
      "How long ended turns took, with the time that they waited for people.",
    ),
    restarts: counterBy("server_restarts_total", "reason", RESTART_REASONS, "Servers started again."),
    recycles: counterBy("server_recycles_total", "reason", RECYCLE_REASONS, "Servers replaced by fresh ones."),
    crashLoops: counter("server_crash_loops_total", "Servers given up after crashing again and again."),
    probes: counterBy("probes_total", "outcome", OK_OR_FAILED, "Probes of servers."),
    probeSeconds: histogram("probe_duration_seconds", PROBE_BUCKETS_SECONDS, "How long probes took."),
    evictions: counter("evictions_total", "Idle sessions unloaded from a server's memory."),
    leases: gauge("leases", "Leases in force."),
    purges: gauge("purges_unfinished", "Erasures of users' data that are not complete, in the whole fleet."),
    oldestPurge: gauge("purges_oldest_timestamp_seconds", "When the oldest of these erasures began; 0: none."),
    gcRuns: counterBy("gc_runs_total", "outcome", OK_OR_FAILED, "Runs of gc."),
    gcDeleted: counter("gc_deleted_sessions_total", "Sessions deleted by gc."),
    gcFreedBytes: counter("gc_freed_bytes_total", "Bytes of the sessions deleted by gc."),
    gcLastSuccess: gauge("gc_last_success_timestamp_seconds", "When gc last succeeded; 0: not yet."),
    memoryBytes: gauge("servers_memory_bytes", "Memory of all servers together."),
    diskFreeBytes: gauge("state_disk_free_bytes", "Room left on the disk that holds the state."),
    doorClients: gauge("door_clients", "Clients connected to the front door."),
    doorTurns: gauge("door_turns", "Turns that run or wait at the front door."),
    requests: new library.Counter({
      ...named("door_requests_total", "Requests at the front door."),
      labelNames: ["method", "outcome"] as const,
    }),
    requestSeconds: new library.Histogram({
      ...named("door_request_duration_seconds", "How long requests at the front door took to be answered."),
      labelNames: ["method"] as const,
      buckets: REQUEST_BUCKETS_SECONDS,
    }),
    httpStreams: gauge("http_streams", "Streams of events that clients read over HTTP."),
    streamEvents: counter("http_stream_events_total", "Events sent in streams over HTTP."),
    slowStreams: counter("http_streams_slow_total", "Streams over HTTP ended because the client read too slowly."),
    events: counterBy("events_total", "result", EVENT_RESULTS, "Events of the audit log."),
    eventsWaiting: gauge("events_waiting", "Events that are not written to the log so far."),
    signOns,
    signOnSeconds,
    agentRequests,
    agentRequestsWaiting: gauge("agent_requests_waiting", "Permissions and questions that wait for a user's answer."),
    limitsReached: counterBy("door_limits_reached_total", "limit", limits, "Refusals at the front door by limits."),
    modelInFlight: gauge("model_requests_in_flight", "Model requests that wait for the end of their answer."),
    modelFailures: counter("model_requests_failed_total", "Model requests that the model service did not answer well."),
    turnsCounted: counter("usage_turns_total", "Turns in the ledger."),
    modelRequests: counter("usage_requests_total", "Model requests in the ledger."),
    modelTokens: counterBy("usage_tokens_total", "kind", TOKEN_KINDS, "Model tokens in the ledger."),
    draining: gauge("draining", "1 while the supervisor drains."),
    healthy: gauge("healthy", "1 when /healthz answers ok."),
    ready: gauge("ready", "1 when /readyz answers ok."),
    errors: counterBy("errors_total", "code", Object.keys(ERRORS), "Errors the supervisor met, by their code."),
  };
}

/** The measurements of a supervisor. Most values have the name of their series. */
export interface MetricsSnapshot {
  serversByState: Record<ServerState, number>;
  /** Running servers without a sandbox. */
  unrestricted: number;
  /** Sessions that are loaded in a server's memory. */
  activeSessions: number;
  turnsInFlight: number;
  /** Turns in flight that have shown no sign of life for too long. */
  turnsStalled: number;
  leases: number;
  /** Purges in the whole fleet that are not complete. */
  purges: number;
  /** When the oldest of these purges began, in seconds since 1970; 0 if there is none. */
  oldestPurge: number;
  memoryBytes: number;
  /** The free space that this process may use on the disk that holds the state, in bytes. Null if it is not known. */
  diskFreeBytes: number | null;
  doorClients: number;
  /** Turns in progress or waiting at the front door. */
  doorTurns: number;
  modelRequests: Readonly<ModelRequests>;
  usage: Readonly<UsageCounts>;
  streams: Readonly<StreamCounts>;
  /** The audit events of this process. */
  events: Readonly<EventCounts>;
}
