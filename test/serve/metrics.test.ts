import { describe, expect, it } from "vitest";
import { ERRORS } from "../../src/base/errors.js";
import type { DoorEvent } from "../../src/door/state/report.js";
import { type Gauges, SampleRing } from "../../src/serve/report/measurements.js";
import { FleetMetrics } from "../../src/serve/report/metrics.js";
import { doorListeners } from "../../src/serve/report/probes.js";
import { DoorFleet } from "../door/harness.js";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";

const open = () => FleetMetrics.open({ version: "1.2.3" });

/** The value of each sample in the text of the metrics, by its name and labels. */
async function samples(metrics: FleetMetrics): Promise<Map<string, number>> {
  const lines = (await metrics.text()).split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  return new Map(
    lines.map((line) => {
      const end = line.lastIndexOf(" ");
      return [line.slice(0, end).replace("copilotfleet_", ""), Number(line.slice(end + 1))];
    }),
  );
}

/** The samples that differ after `change`. */
async function changed(metrics: FleetMetrics, change: () => void): Promise<Record<string, number>> {
  const before = await samples(metrics);
  change();
  const after = [...(await samples(metrics))].filter(([name]) => name !== "supervisor_memory_bytes");
  return Object.fromEntries(after.filter(([name, value]) => before.get(name) !== value));
}

describe("the metrics", () => {
  it("the metrics have every series from the start, each at zero", async () => {
    const seen = await samples(await open());
    const expected = [
      ...["starting", "ready", "unhealthy", "draining", "stopped", "failed"].map(
        (state) => `servers{state="${state}"}`,
      ),
      ...["completed", "failed", "aborted", "cut"].map((outcome) => `turns_total{outcome="${outcome}"}`),
      ...["crash", "hang", "start"].map((reason) => `server_restarts_total{reason="${reason}"}`),
      ...["memory", "age"].map((reason) => `server_recycles_total{reason="${reason}"}`),
      ...["ok", "failed"].map((outcome) => `probes_total{outcome="${outcome}"}`),
      ...["ok", "failed"].map((outcome) => `gc_runs_total{outcome="${outcome}"}`),
      ...Object.keys(ERRORS).map((code) => `errors_total{code="${code}"}`),
      ...["sessions_active", "turns_in_flight", "turns_stalled", "leases", "servers_memory_bytes", "draining"],
      ...["purges_unfinished", "purges_oldest_timestamp_seconds"],
      ...["servers_without_sandbox", "servers_over_disk_limit"],
      ...["allowed", "refused", "blocked", "failed", "limited"].map(
        (result) => `egress_connections_total{result="${result}"}`,
      ),
      ...["memory", "processes", "disk"].map((limit) => `server_limits_reached_total{limit="${limit}"}`),
      ...["server_crash_loops_total", "evictions_total", "gc_deleted_sessions_total", "gc_freed_bytes_total"],
      ...["token", "jwt", "github", "host"].flatMap((via) => [
        ...["accepted", "refused", "unchecked"].map((result) => `sign_ons_total{via="${via}",result="${result}"}`),
        `sign_on_duration_seconds_count{via="${via}"}`,
      ]),
      ...["gc_last_success_timestamp_seconds", "turn_duration_seconds_count", "probe_duration_seconds_count"],
    ];
    for (const name of expected) expect(seen.get(name), name).toBe(0);
    expect(seen.get('turn_duration_seconds_bucket{le="0.05"}')).toBe(0);
    expect(seen.get('turn_duration_seconds_bucket{le="600"}')).toBe(0);
    expect(seen.get('probe_duration_seconds_bucket{le="0.0005"}')).toBe(0);
    expect(seen.get('probe_duration_seconds_bucket{le="5"}')).toBe(0);
  });

  it("the metrics omit values that were not measured, because a zero would raise a false alarm", async () => {
    const metrics = await open();
    for (const name of ["state_disk_free_bytes", "healthy", "ready"])
      expect((await samples(metrics)).has(name), name).toBe(false);
    metrics.observe({ diskFreeBytes: 16 });
    metrics.judged({ healthy: true, ready: false });
    expect((await samples(metrics)).get("state_disk_free_bytes")).toBe(16);
    expect((await samples(metrics)).get("healthy")).toBe(1);
    expect((await samples(metrics)).get("ready")).toBe(0);
    metrics.observe({ diskFreeBytes: null });
    expect((await samples(metrics)).has("state_disk_free_bytes")).toBe(false);
  });

  it("the metrics count each check of a credential by kind and result, with a histogram of durations", async () => {
    const metrics = await open();
    expect(await changed(metrics, () => metrics.signedOn("jwt", "unchecked", 0.02))).toEqual({
      'sign_ons_total{via="jwt",result="unchecked"}': 1,
      'sign_on_duration_seconds_bucket{le="0.05",via="jwt"}': 1,
      'sign_on_duration_seconds_bucket{le="0.25",via="jwt"}': 1,
      'sign_on_duration_seconds_bucket{le="1",via="jwt"}': 1,
      'sign_on_duration_seconds_bucket{le="5",via="jwt"}': 1,
      'sign_on_duration_seconds_bucket{le="+Inf",via="jwt"}': 1,
      'sign_on_duration_seconds_sum{via="jwt"}': 0.02,
      'sign_on_duration_seconds_count{via="jwt"}': 1,
    });
  });

  it("after a gc run, the metrics count its deleted sessions and freed bytes, and show when it succeeded", async () => {
    const metrics = await open();
    const session = { id: "s", owner: "alice", ageMs: 1, bytes: 21 };
    const seen = await changed(metrics, () =>
      metrics.gcRan({ deleted: [session, session], freedBytes: 42, unreadable: [] }),
    );
    const { gc_last_success_timestamp_seconds: at, ...rest } = seen;
    expect(rest).toEqual({ 'gc_runs_total{outcome="ok"}': 1, gc_deleted_sessions_total: 2, gc_freed_bytes_total: 42 });
    expect(at).toBeCloseTo(Date.now() / 1000, -1);
  });

  it("the metrics count a gc run with an unreadable session as failed, and still count the bytes that it freed", async () => {
    const metrics = await open();
    const damaged = { id: "s", code: "FLEET_STATE_CORRUPT", message: "", suggestions: [] } as const;
    const result = { deleted: [], freedBytes: 42, unreadable: [{ ...damaged, suggestions: [] }] };
    const seen = await changed(metrics, () => metrics.gcRan(result));
    expect(seen).toEqual({ 'gc_runs_total{outcome="failed"}': 1, gc_freed_bytes_total: 42 });
  });

  it("the metrics contain no label value outside the fixed lists, such as a user's name", async () => {
    const metrics = await open();
    const servers = { starting: 1, ready: 4, unhealthy: 2, draining: 3, stopped: 6, failed: 5, "alice-1": 1 };
    metrics.observe({ servers });
    expect(await metrics.text()).not.toContain("alice");
    const names = new Set([...(await metrics.text()).matchAll(/([a-z]+)="/g)].map(([, name]) => name));
    expect([...names].sort()).toEqual([
      "code",
      "kind",
      "le",
      "limit",
      "node",
      "outcome",
      "reason",
      "result",
      "state",
      "version",
      "via",
    ]);
  });

  it("the metrics are in the Prometheus text format", async () => {
    const metrics = await open();
    expect(metrics.contentType).toMatch(/^text\/plain; version=0\.0\.4/);
    for (const line of (await metrics.text()).split("\n"))
      expect(line).toMatch(/^$|^# (HELP|TYPE) copilotfleet_[a-z_]+ \S|^copilotfleet_[a-z_]+(\{.*\})? \S+$/);
  });
});

const GAUGES: Gauges = { turnsInFlight: 1, servers: 2, activeSessions: 3, memoryBytes: 4 };
const NONE = { completed: 0, failed: 0, aborted: 0, cut: 0 };

function started(): SampleRing {
  const ring = new SampleRing();
  ring.start();
  return ring;
}

describe("the samples of a host", () => {
  it("a sample counts what happened since the previous one, and has the gauges' values of its moment", () => {
    const ring = started();
    ring.turnEnded("completed", 100, 1_000);
    ring.turnEnded("cut", 300, 1_000);
    ring.evicted(5);
    ring.take(GAUGES, 2_000);
    ring.take({ ...GAUGES, servers: 0 }, 3_000);
    expect(ring.after()).toEqual([
      {
        at: "1970-01-01T00:00:02.000Z",
        turns: { ...NONE, completed: 1, cut: 1 },
        turnMs: { p50: 100, p95: 300 },
        evictions: 5,
        ...GAUGES,
      },
      {
        at: "1970-01-01T00:00:03.000Z",
        turns: NONE,
        turnMs: { p50: 100, p95: 300 },
        evictions: 0,
        ...GAUGES,
        servers: 0,
      },
    ]);
  });

  it("the percentiles of a sample cover only the turns of the last minute", () => {
    const ring = started();
    for (let ms = 1; ms <= 100; ms += 1) ring.turnEnded("completed", ms, 0);
    ring.turnEnded("completed", 7, 30_000);
    ring.take(GAUGES, 59_999);
    ring.take(GAUGES, 60_000);
    ring.take(GAUGES, 90_000);
    expect(ring.after().map(({ turnMs }) => turnMs)).toEqual([
      { p50: 50, p95: 95 },
      { p50: 7, p95: 7 },
      { p50: null, p95: null },
    ]);
  });
});

/** The codes under which the metrics count the errors among these events. */
function counted(events: readonly DoorEvent[]): string[] {
  const codes: string[] = [];
  const metrics = { failed: (code: string) => codes.push(code) };
  const context = { config: {}, metrics, log: () => undefined } as unknown as Parameters<typeof doorListeners>[0];
  const { onEvent } = doorListeners(context);
  for (const event of events) onEvent?.(event);
  return codes;
}

it("a failure of the front door is counted under its own error code, and as FLEET_INTERNAL only if it is a bug", async () => {
  expect(counted([{ event: "failed", address: "", detail: "TypeError: x is undefined" }])).toEqual(["FLEET_INTERNAL"]);
  await using at = await DoorFleet.open();
  await at.fleet.pool.drain();
  await expect(at.client("ann")).rejects.toThrow();
  await eventually("the report", () => at.events.some(({ event }) => event === "failed"));
  expect(counted(at.events)).toEqual(["FLEET_POOL_DRAINING"]);
});

it("a refusal by a limit is counted under the name of the limit, and not as an error", async () => {
  const limits: string[] = [];
  const levels: string[] = [];
  const limitsReached = { inc: ({ limit }: { limit: string }) => limits.push(limit) };
  const metrics = { failed: (code: string) => limits.push(code), series: { limitsReached } };
  const log = (level: string) => levels.push(level);
  const context = { config: {}, metrics, log } as unknown as Parameters<typeof doorListeners>[0];
  await using at = await DoorFleet.open({ config: { limits: { default: { connections: 1 } } } });
  const { onEvent } = doorListeners(context);
  await at.client("ann");
  await expect(at.client("ann")).rejects.toThrow("A user may have 1 connection to");
  for (const event of at.events.filter(({ event }) => event !== "connected" && event !== "closed")) onEvent?.(event);
  expect({ limits, levels }).toEqual({ limits: ["connections"], levels: ["warn"] });
});

it("an accepted sign-on at the front door is counted as accepted, and a refused sign-on as refused", async () => {
  const counted: string[] = [];
  const metrics = { signedOn: (...labels: string[]) => counted.push(labels.slice(0, 2).join(" ")) };
  const context = { config: { serve: {} }, metrics, log: () => undefined } as unknown;
  await using at = await DoorFleet.open();
  const listen = { host: "127.0.0.1", port: 0 };
  const listeners = doorListeners(context as Parameters<typeof doorListeners>[0]);
  await using door = await at.fleet.doors.open({ listen, ...listeners });
  const { token } = await at.fleet.tokens.issue("ann");
  await RawClient.as(door.url, token);
  await expect(RawClient.as(door.url, `${token}x`)).rejects.toThrow("AUTHENTICATION_FAILED");
  expect(counted).toEqual(["token accepted", "token refused"]);
});
