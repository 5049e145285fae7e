import { execFile, spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { beforeAll, describe, expect, it } from "vitest";
import { parse } from "yaml";
import { showAddress } from "../../src/runtime/launch/listen.js";
import { FleetMetrics } from "../../src/serve/report/metrics.js";
import { HealthEndpoint } from "../../src/serve/report/probes.js";
import { eventually } from "../fixtures/eventually.js";
import { type Prometheus, prometheus } from "../fixtures/fleets/prometheus.js";

const run = promisify(execFile);
const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const DASHBOARD = `${ROOT}/monitoring/grafana-dashboard.json`;
const RULES = `${ROOT}/monitoring/alerts.yml`;
const UNIT_TESTS = `${ROOT}/test/serve/alerts.test.yml`;
const DOCS = readFileSync(`${ROOT}/docs/monitoring.md`, "utf8");

interface Panel {
  id: number;
  type: string;
  title: string;
  datasource?: { uid: string };
  targets?: { expr: string; datasource: { uid: string } }[];
  gridPos: { x: number; y: number; w: number; h: number };
}

interface Rule {
  alert: string;
  expr: string;
  for: string;
  labels: Record<string, string>;
  annotations: Record<string, string>;
}

interface UnitTest {
  promql_expr_test?: { expr: string; exp_samples: { labels: string }[] }[];
}

const dashboard = JSON.parse(readFileSync(DASHBOARD, "utf8")) as {
  panels: Panel[];
  templating: { list: { name: string; type: string; query: string | { query: string } }[] };
};
const rules = (parse(readFileSync(RULES, "utf8")) as { groups: { rules: Rule[] }[] }).groups.flatMap(
  (group) => group.rules,
);
const unitTests = (parse(readFileSync(UNIT_TESTS, "utf8")) as { tests: UnitTest[] }).tests;
const targets = dashboard.panels.flatMap(({ title, targets = [] }) => targets.map((target) => ({ title, ...target })));
const exprs = targets.map(({ title, expr }) => ({ title, expr: filledIn(expr) }));

const missing = (program: string) => spawnSync(program, ["--version"]).error !== undefined;
const noPromtool = missing("promtool");
const noPrometheus = noPromtool || missing("prometheus");
const NEEDS = "(skipped where the Debian package prometheus is missing)";

/** Fills in the dashboard's variables as Grafana does when "All" is chosen. */
function filledIn(expr: string): string {
  return expr.replaceAll("$__rate_interval", "30s").replaceAll(/\$(job|instance)\b/g, ".*");
}

/** The endpoint of a supervisor with sample values. The caller closes it. */
async function supervisor(): Promise<{ endpoint: HealthEndpoint; metrics: FleetMetrics }> {
  const metrics = await FleetMetrics.open({ version: "1.2.3" });
  metrics.observe({
    servers: { starting: 0, ready: 3, unhealthy: 0, draining: 0, stopped: 2, failed: 0 },
    activeSessions: 5,
    turnsInFlight: 2,
    leases: 1,
    memoryBytes: 300_000_000,
    diskFreeBytes: 50_000_000_000,
  });
  const endpoint = await HealthEndpoint.open({
    address: { host: "127.0.0.1", port: 0 },
    metrics,
    health: { unhealthy: () => [], unready: () => [] },
    log: (_level, message) => expect.fail(message),
    signal: AbortSignal.timeout(60_000),
  });
  return { endpoint, metrics };
}

async function scraped(): Promise<string> {
  const { endpoint } = await supervisor();
  await using _ = endpoint;
  return await (await fetch(`http://${showAddress(endpoint.address)}/metrics`)).text();
}

describe("monitoring", () => {
  let exposition: string;
  /** The names that a query may use. A histogram has three. */
  let exposed: Set<string>;
  beforeAll(async () => {
    exposition = await scraped();
    exposed = new Set([...exposition.matchAll(/^(copilotfleet_\w+)/gm)].map(([, name = ""]) => name));
  });

  it("the dashboard, the alerts and their tests use only metrics that exist", () => {
    for (const path of [DASHBOARD, RULES, UNIT_TESTS]) {
      const asked = new Set(readFileSync(path, "utf8").match(/\bcopilotfleet_\w+/g));
      expect(asked.size, path).toBeGreaterThan(10);
      expect(
        [...asked].filter((name) => !exposed.has(name)),
        path,
      ).toEqual([]);
    }
  });

  it("the dashboard and the alerts use only label values that exist", () => {
    const pairs = [...exposition.matchAll(/(\w+)="([^"]*)"/g)].map(([pair]) => pair);
    const asked = [...rules, ...targets].flatMap(({ expr }) => [
      ...expr.matchAll(/(state|outcome|code|via|result)(=~?|!~)"([^"]+)"/g),
    ]);
    expect(asked.length).toBeGreaterThan(8);
    for (const [whole, label, , pattern = ""] of asked) {
      const [, before = "", choices = pattern, after = ""] = /^(.*)\((.*)\)(.*)$/.exec(pattern) ?? [];
      for (const choice of choices.split("|")) expect(pairs, whole).toContain(`${label}="${before}${choice}${after}"`);
    }
  });

  it("docs/monitoring.md has every metric", () => {
    const named = [...exposition.matchAll(/^# TYPE copilotfleet_(\w+)/gm)].map(([, name]) => name);
    expect(named.length).toBeGreaterThan(20);
    expect(named.filter((name) => !DOCS.includes(`\`${name}\``))).toEqual([]);
  });

  it("the package includes the monitoring folder", () => {
    const { files } = JSON.parse(readFileSync(`${ROOT}/package.json`, "utf8")) as { files: string[] };
    expect(files).toContain("monitoring");
  });
});

describe("the dashboard", () => {
  it("the dashboard's panels have unique ids, do not overlap, and use the chosen data source", () => {
    const { panels } = dashboard;
    expect(panels.length).toBeGreaterThan(15);
    expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
    const cells = panels.flatMap(({ gridPos: { x, y, w, h } }) =>
      Array.from({ length: w * h }, (_, at) => `${x + (at % w)},${y + Math.floor(at / w)}`),
    );
    expect(new Set(cells).size, "cells that no two panels share").toBe(cells.length);
    expect(panels.every(({ gridPos: { x, w } }) => x + w <= 24)).toBe(true);
    for (const panel of panels.filter(({ type }) => type !== "row")) {
      expect(panel.targets?.length, panel.title).toBeGreaterThan(0);
      const sources = [panel.datasource, ...(panel.targets ?? []).map((target) => target.datasource)];
      expect(new Set(sources.map((source) => source?.uid)), panel.title).toEqual(new Set([`\${datasource}`]));
    }
  });

  it("every query of the dashboard filters by the job and instance variables", () => {
    const variables = dashboard.templating.list.map(({ name }) => name);
    expect(variables).toEqual(["datasource", "job", "instance"]);
    for (const { title, expr } of targets) {
      const used = [...expr.matchAll(/\$(\w+)/g)].map(([, name]) => name);
      expect(new Set(used), title).toEqual(
        new Set([...used.filter((name) => name === "__rate_interval"), "job", "instance"]),
      );
    }
  });
});

describe("the alerts", () => {
  it("every alert has a duration, a severity, texts and a runbook link", () => {
    expect(rules.length).toBeGreaterThan(15);
    expect(new Set(rules.map(({ alert }) => alert)).size).toBe(rules.length);
    for (const { alert, for: wait, labels, annotations } of rules) {
      expect(wait, alert).toMatch(/^[1-9]\d*[mh]$/);
      expect(labels, alert).toEqual({ severity: expect.stringMatching(/^(critical|warning)$/) });
      expect(Object.keys(annotations), alert).toEqual(["summary", "description", "runbook_url"]);
    }
  });

  it.each(rules.map((rule) => [rule.alert, rule] as const))(
    "the alert %s has a test in which it fires and one in which it does not",
    (alert, rule) => {
      const of = unitTests
        .flatMap((test) => test.promql_expr_test ?? [])
        .filter(({ expr }) => expr === `ALERTS{alertname="${alert}",alertstate="firing"}`);
      const firing = of.flatMap(({ exp_samples }) => exp_samples);
      expect(firing.length, "firing").toBeGreaterThan(0);
      expect(of.filter(({ exp_samples }) => exp_samples.length === 0).length, "not firing").toBeGreaterThan(0);
      // Every label that the annotations use must exist on the firing alerts. Otherwise it would be empty in the text.
      for (const [, label] of Object.values(rule.annotations)
        .join()
        .matchAll(/\$labels\.(\w+)/g))
        expect(
          firing.every(({ labels }) => labels.includes(`${label}="`)),
          label,
        ).toBe(true);
    },
  );
});

describe(`promtool ${NEEDS}`, () => {
  it.skipIf(noPromtool)("promtool accepts the alert rules", async () => {
    expect((await run("promtool", ["check", "rules", RULES])).stdout).toContain(`${rules.length} rules found`);
  });

  it.skipIf(noPromtool)("the unit tests of the alerts pass in promtool", async () => {
    expect((await run("promtool", ["test", "rules", UNIT_TESTS])).stdout).toContain("SUCCESS");
  });

  it.skipIf(noPromtool)("promtool finds nothing wrong with the metrics", async () => {
    const child = run("promtool", ["check", "metrics"]);
    child.child.stdin?.end(await scraped());
    expect(await child).toEqual({ stdout: "", stderr: "" });
  });
});

describe(`a real Prometheus ${NEEDS}`, () => {
  it.skipIf(noPrometheus)(
    "a real Prometheus scrapes the endpoint, evaluates the rules, and answers every query of the dashboard",
    async () => {
      const { endpoint, metrics } = await supervisor();
      await using _ = endpoint;
      const server = await prometheus({ target: showAddress(endpoint.address), rules: RULES });
      await eventually("the target is up", () => targetIsUp(server), 30_000);
      const scrapedAtMs = Date.now();
      // While nothing happens at the supervisor, no alert fires. Some alerts are
      // pending right after the supervisor's start, and become inactive soon.
      const fine = rules.map(({ alert }) => ({ name: alert, health: "ok", state: "inactive" }));
      await expect.poll(() => judgedSince(server, scrapedAtMs), { timeout: 30_000 }).toEqual(fine);

      // Prometheus has seen these counters at zero before, so it now sees an increase.
      oneOfEverything(metrics);
      const silent = new Set(exprs.map(({ expr }) => expr));
      await eventually(
        "every panel shows something",
        async () => {
          for (const expr of silent) if ((await server.query(expr)).length > 0) silent.delete(expr);
          return silent.size === 0;
        },
        30_000,
      ).catch((cause: Error) => expect.fail(`${cause.message}: ${[...silent].join("\n")}`));
    },
  );
});

function oneOfEverything(metrics: FleetMetrics): void {
  metrics.series.restarts.inc({ reason: "crash" });
  metrics.series.crashLoops.inc();
  metrics.series.recycles.inc({ reason: "age" });
  metrics.probed("ok", 0.01);
  metrics.turnEnded("completed", 2);
  metrics.series.evictions.inc(1);
  metrics.signedOn("jwt", "accepted", 0.002);
  metrics.gcRan({ deleted: [], freedBytes: 1, unreadable: [] });
  metrics.failed("FLEET_INTERNAL");
}

/** Poll this: Prometheus finds its target seconds after its start, and on a busy machine the first scrapes may fail. */
async function targetIsUp(server: Prometheus): Promise<boolean> {
  const { activeTargets } = await server.api<{ activeTargets: { health: string }[] }>("targets");
  return activeTargets[0]?.health === "up";
}

interface JudgedRule {
  name: string;
  health: string;
  state: string;
}

/**
 * The rules as Prometheus reports them, but only those that it has evaluated after `sinceMs`.
 *
 * Poll this. An evaluation uses only the samples up to its scheduled time. On a busy machine, it runs later, and misses
 * the samples of a scrape that ended in between. In this case, `absent` and `up == 0` make alerts pending for a moment.
 */
async function judgedSince(server: Prometheus, sinceMs: number): Promise<JudgedRule[]> {
  const { groups } = await server.api<{ groups: { rules: (JudgedRule & { lastEvaluation: string })[] }[] }>("rules");
  return groups
    .flatMap((group) => group.rules)
    .filter(({ lastEvaluation }) => Date.parse(lastEvaluation) > sinceMs)
    .map(({ name, health, state }) => ({ name, health, state }));
}
