import type { Counter, Gauge, LabelValues, Registry } from "prom-client";
import { ERRORS, type FleetErrorCode } from "../../base/errors.js";
import { SERVER_STATES } from "../../base/server.js";
import { TURN_OUTCOMES, type TurnOutcome } from "../../base/session.js";
import { LIMITED, USER_LIMITS } from "../../base/user-limits.js";
import type { RequestReport } from "../../door/state/report.js";
import { SIGN_ON_RESULTS, type SignOnReport, WAYS } from "../../identity/sign-on.js";
import { EGRESS_RESULTS } from "../../sandbox/network/outbound.js";
import type { GcResult } from "../../sessions/gc/collect.js";
import { REQUEST_KINDS, REQUEST_OUTCOMES } from "../../sessions/requests.js";

/** Why a server was started again. `start`: its previous start failed. */
const RESTART_REASONS = ["crash", "hang", "start"] as const;
const RECYCLE_REASONS = ["memory", "age"] as const;
const SERVER_LIMITS = ["memory", "processes", "disk"] as const;
const OK_OR_FAILED = ["ok", "failed"] as const;

export type RestartReason = (typeof RESTART_REASONS)[number];
export type RecycleReason = (typeof RECYCLE_REASONS)[number];

const TURN_BUCKETS_SECONDS = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600];
const REQUEST_BUCKETS_SECONDS = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60];
const SIGN_ON_BUCKETS_SECONDS = [0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1, 5];
const PROBE_BUCKETS_SECONDS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5];

/** The label of the series that {@link FleetMetrics.observe} sets, and the values of this label. */
const LABELS = {
  servers: ["state", SERVER_STATES],
  modelTokens: ["kind", ["input", "cached", "output"]],
  events: ["result", ["written", "lost"]],
} as const satisfies Record<string, readonly [label: string, values: readonly string[]]>;

type Series = ReturnType<typeof seriesOf>;
type Labelled = { [Name in keyof typeof LABELS]: Readonly<Record<(typeof LABELS)[Name][1][number], number>> };
type Plain = { [Name in keyof Series as Series[Name] extends Settable ? Name : never]: number | null };

/** Current values, by the names of their series. Null: the value is not known, so the series is left out. */
export type Observation = Partial<Labelled & Omit<Plain, keyof Labelled>>;

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
  readonly series: Series;

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

  /** Sets gauges, and counters whose totals other parts keep. */
  observe(values: Observation): void {
    for (const [name, value] of Object.entries(values)) {
      const series = this.series[name as keyof Observation];
      if (value === null) series.remove();
      else if (typeof value === "number") set(series, {}, value);
      else {
        const [label, known] = LABELS[name as keyof Labelled];
        for (const each of known) set(series, { [label]: each }, (value as Record<string, number>)[each] ?? 0);
      }
    }
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

type Settable = Gauge | Counter;

function set(series: Settable, labels: LabelValues<string>, value: number): void {
  if ("set" in series) series.set(labels, value);
  else {
    series.remove(labels);
    series.inc(labels, value);
  }
}

function seriesOf(library: typeof import("prom-client"), registry: Registry, version: string) {
  const named = (name: string, help: string) => ({ name: `copilotfleet_${name}`, help, registers: [registry] });
  const gauge = (name: string, help: string) => new library.Gauge(named(name, help));
  const counter = (name: string, help: string) => new library.Counter(named(name, help));
  /** A counter with a series for each combination of the labels' values. */
  const counterBy = <L extends string>(name: string, labels: Record<L, readonly string[]>, help: string) => {
    const made = new library.Counter<string>({ ...named(name, help), labelNames: Object.keys(labels) });
    for (const each of combinations(labels)) made.inc(each, 0);
    return made as Counter<L>;
  };
  const histogram = (name: string, buckets: number[], help: string) =>
    new library.Histogram({ ...named(name, help), buckets });
  const histogramBy = <L extends string>(name: string, label: L, buckets: number[], help: string) =>
    new library.Histogram<L>({ ...named(name, help), labelNames: [label], buckets });

  const signOnSeconds = histogramBy(
    "sign_on_duration_seconds",
    "via",
    SIGN_ON_BUCKETS_SECONDS,
    "How long the checks of credentials took.",
  );
  for (const via of WAYS) signOnSeconds.zero({ via });
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
    serverLimits: counterBy("server_limits_reached_total", { limit: SERVER_LIMITS }, "Limits that servers reached."),
    egress: counterBy("egress_connections_total", { result: EGRESS_RESULTS }, "Connections that servers asked for."),
    activeSessions: gauge("sessions_active", "Sessions loaded in a server's memory."),
    turnsInFlight: gauge("turns_in_flight", "Turns that have begun and not ended."),
    turnsStalled: gauge("turns_stalled", "Turns in flight without a sign of life for too long."),
    turns: counterBy("turns_total", { outcome: TURN_OUTCOMES }, "Turns that have ended."),
    turnSeconds: histogram(
      "turn_duration_seconds",
      TURN_BUCKETS_SECONDS,
      "How long ended turns took, with the time that they waited for people.",
    ),
    restarts: counterBy("server_restarts_total", { reason: RESTART_REASONS }, "Servers started again."),
    recycles: counterBy("server_recycles_total", { reason: RECYCLE_REASONS }, "Servers replaced by fresh ones."),
    crashLoops: counter("server_crash_loops_total", "Servers given up after crashing again and again."),
    probes: counterBy("probes_total", { outcome: OK_OR_FAILED }, "Probes of servers."),
    probeSeconds: histogram("probe_duration_seconds", PROBE_BUCKETS_SECONDS, "How long probes took."),
    evictions: counter("evictions_total", "Idle sessions unloaded from a server's memory."),
    leases: gauge("leases", "Leases in force."),
    purges: gauge("purges_unfinished", "Erasures of users' data that are not complete, in the whole fleet."),
    oldestPurge: gauge("purges_oldest_timestamp_seconds", "When the oldest of these erasures began; 0: none."),
    gcRuns: counterBy("gc_runs_total", { outcome: OK_OR_FAILED }, "Runs of gc."),
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
    requestSeconds: histogramBy(
      "door_request_duration_seconds",
      "method",
      REQUEST_BUCKETS_SECONDS,
      "How long requests at the front door took to be answered.",
    ),
    httpStreams: gauge("http_streams", "Streams of events that clients read over HTTP."),
    streamEvents: counter("http_stream_events_total", "Events sent in streams over HTTP."),
    slowStreams: counter("http_streams_slow_total", "Streams over HTTP ended because the client read too slowly."),
    events: counterBy("events_total", { result: LABELS.events[1] }, "Events of the audit log."),
    eventsWaiting: gauge("events_waiting", "Events that are not written to the log so far."),
    signOns: counterBy(
      "sign_ons_total",
      { via: WAYS, result: SIGN_ON_RESULTS },
      "Credentials that were checked at the front door.",
    ),
    signOnSeconds,
    agentRequests: counterBy(
      "agent_requests_total",
      { kind: REQUEST_KINDS, outcome: REQUEST_OUTCOMES },
      "Permissions and questions of the agent that have ended.",
    ),
    agentRequestsWaiting: gauge("agent_requests_waiting", "Permissions and questions that wait for a user's answer."),
    limitsReached: counterBy("door_limits_reached_total", { limit: limits }, "Refusals at the front door by limits."),
    modelInFlight: gauge("model_requests_in_flight", "Model requests that wait for the end of their answer."),
    modelFailures: counter("model_requests_failed_total", "Model requests that the model service did not answer well."),
    turnsCounted: counter("usage_turns_total", "Turns in the ledger."),
    modelRequests: counter("usage_requests_total", "Model requests in the ledger."),
    modelTokens: counterBy("usage_tokens_total", { kind: LABELS.modelTokens[1] }, "Model tokens in the ledger."),
    draining: gauge("draining", "1 while the supervisor drains."),
    healthy: gauge("healthy", "1 when /healthz answers ok."),
    ready: gauge("ready", "1 when /readyz answers ok."),
    errors: counterBy("errors_total", { code: Object.keys(ERRORS) }, "Errors the supervisor met, by their code."),
  };
}

function combinations(labels: Record<string, readonly string[]>): Record<string, string>[] {
  return Object.entries(labels).reduce<Record<string, string>[]>(
    (all, [label, values]) => all.flatMap((each) => values.map((value) => ({ ...each, [label]: value }))),
    [{}],
  );
}
