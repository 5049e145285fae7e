import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chownSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { openStore } from "../../src/store/store.js";
import { RawClient } from "../door/raw-client.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { eventually } from "../fixtures/eventually.js";
import { FAST_HEALTH } from "../fixtures/fleets/serve.js";
import { type FailingModel, startFailingModel } from "../fixtures/models/failing-model.js";
import { metric, Operator } from "../fixtures/monitoring/operator.js";
import { firing, type Scale, type Scene, type Scrape } from "../fixtures/monitoring/replay.js";
import {
  filledIn,
  missingLine,
  type Runbook,
  runbooks,
  type Step,
  type Values,
} from "../fixtures/monitoring/runbooks.js";
import { damageRecord } from "../fixtures/store/database.js";

/** `npm test` tries two runbooks. `npm run soak` tries all of them, in about a minute. */
const SOAK = process.env.SOAK !== undefined;
const long = it.skipIf(!SOAK);
const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const FAULTS = join(ROOT, "test/fixtures/programs/faulty-serve.cjs");
const BOOKS = new Map(runbooks().map((book) => [book.alert, book]));
const missing = (program: string) => spawnSync(program, ["--version"]).error !== undefined;
const noPromtool = missing("promtool");
if (noPromtool) console.log("the runbooks are not tried: promtool is not installed");

/** How to try the runbook of one alert. "The condition" is the state of the fleet that the alert reports. */
interface Scenario {
  /** Brings the fleet into the condition. Resolves with the values for the placeholders in the runbook's commands. */
  cause: () => Values | Promise<Values>;
  /** The number in a scrape that shows whether the condition holds, as `kind` describes. */
  value: (scrape: Scrape) => number;
  /**
   * When the condition holds. `gauge` (default): while the value is above 0. `counter`: once `cause` has made the value
   * grow. `past`: at once, because the value grew before `cause`. No command ends a condition of the last two kinds.
   */
  kind?: "gauge" | "counter" | "past";
  /** Whether the condition has ended. Default: for a gauge, when the value is 0; for the other kinds, always. */
  isOver?: (after: Scrape, during: Scrape) => boolean;
  /** Does the steps that the runbook leaves to the operator, such as typing a command that doctor printed. */
  cure?: (printed: string) => void | Promise<void>;
  /** How long the condition lasts in the replay. Default: an hour. */
  minutes?: number;
  scale?: (before: Scrape, during: Scrape) => Scale;
  /** The scenes of the replay before the condition holds. Default: ten minutes of the scrape before `cause`. */
  story?: () => Scene[];
}

/** Types the commands of the steps. Each must print what the runbook promises. Resolves with all of their output. */
async function follow(
  operator: Operator,
  steps: readonly Step[],
  values: Values,
  mustSucceed: boolean,
): Promise<string> {
  let printed = "";
  for (const step of steps) {
    const command = filledIn(step.command, values);
    const { output, code } = await operator.type(command);
    expect(missingLine(output, step.output, values), `${command} printed:\n${output}`).toBeNull();
    // Exit code 8 means that a restart with --force has cut a turn, as the runbook announces.
    if (mustSucceed)
      expect(command.endsWith("--force") ? [0, 8] : [0], `${command} printed:\n${output}`).toContain(code);
    printed += output;
  }
  return printed;
}

/** Causes an alert's condition, checks that the alert fires, follows its runbook, and checks that the alert ends. */
async function tried(operator: Operator, alert: string, scenario: Scenario): Promise<void> {
  const { cause, value, kind = "gauge", cure, minutes = 60, story } = scenario;
  const book = BOOKS.get(alert) as Runbook;
  const before = await operator.scrape();
  const values = await cause();
  const least = kind === "counter" ? value(before) : 0;
  const during = await operator.scrapeThat(alert, (scrape) => value(scrape) > least);
  const scale = scenario.scale?.(before, during) ?? [];
  const scenes = [...(story?.() ?? [{ scrape: before, minutes: 10 }]), { scrape: during, minutes }];
  expect((await firing(alert, scenes, scale)).at(-1), `${alert} fires`).toBe(true);

  const printed = await follow(operator, book.confirm, values, false);
  await cure?.(printed);
  await follow(operator, book.mend, values, true);
  const isOver = scenario.isOver ?? ((after: Scrape) => kind !== "gauge" || value(after) === 0);
  const after = await operator.scrapeThat(
    `the end of ${alert}`,
    (scrape) => scrape.text !== null && isOver(scrape, during),
  );
  expect((await firing(alert, [...scenes, { scrape: after, minutes: 180 }], scale)).at(-1), `${alert} ends`).toBe(
    false,
  );
}

/** The command behind `Try:` below the failed check of doctor. */
function adviceIn(printed: string): string {
  const [, advice] = /^FAIL {3}.*\n(?: {24}-.*\n)* {24}Try: (.*)$/m.exec(printed) ?? [];
  if (advice === undefined) throw new Error(`doctor gave no advice:\n${printed}`);
  return advice;
}

const noAnswer = ({ text }: Scrape) => (text === null ? 1 : 0);
const gauge =
  (name: string, label = "") =>
  (scrape: Scrape) =>
    metric(scrape, name, label);

describe.skipIf(noPromtool)("the runbooks, followed on a real fleet", () => {
  let model: FailingModel;
  let operator: Operator;
  const fleet = testFleet({
    ...FAST_HEALTH,
    // serve must not end a server that hangs, because the runbooks have to find one.
    COPILOTFLEET_HEALTH_FAILURES: "1000",
    COPILOTFLEET_HEALTH_RESTARTS: "2",
    COPILOTFLEET_HEALTH_STALLED_TURN: "1s",
  });
  const faultFile = join(fleet.folder, "fault");
  const fault = (name: string) => writeFileSync(faultFile, name);
  const others: ChildProcess[] = [];

  beforeAll(async () => {
    model = await startFailingModel();
    Object.assign(fleet.env, model.env);
    operator = new Operator(fleet);
    operator.serveEnv = {
      NODE_OPTIONS: `--require=${FAULTS}`,
      FAULT_FILE: faultFile,
      COPILOTFLEET_DRAIN_TIMEOUT: "10m",
    };
  });
  afterAll(async () => {
    for (const child of others) child.kill("SIGKILL");
    model.held.release();
    await operator.end();
    await model[Symbol.asyncDispose]();
  });

  const attempt = async (alert: string, scenario: Scenario) => await tried(operator, alert, scenario);

  /** Starts serve unless it runs. */
  async function serving(): Promise<void> {
    if ((await operator.scrape()).text === null) await operator.type("systemctl start copilotfleet");
    await operator.scrapeThat("serve", ({ text }) => text !== null);
  }
  // Each test begins with a healthy fleet, whatever the tests before it did.
  beforeEach(async () => {
    fault("");
    model.key = "good";
    await serving();
  });

  it("the runbook of CopilotfleetAbsent works as printed", async () => {
    const cause = async () => {
      await operator.end();
      return {};
    };
    await attempt("CopilotfleetAbsent", { cause, value: noAnswer });
  });

  it("the runbook of CopilotfleetNotReady works as printed", async () => {
    const cause = async () => {
      await fleet.ok(["drain"]);
      return {};
    };
    await attempt("CopilotfleetNotReady", { cause, value: (scrape) => 1 - metric(scrape, "ready") });
  });

  long("the runbook of CopilotfleetDown works as printed", async () => {
    await fleet.spawn("sixth");
    const cause = () => {
      process.kill(operator.servePid, "SIGKILL");
      return {};
    };
    await attempt("CopilotfleetDown", { cause, value: noAnswer });
  });

  // `serve` mends a wrong mode by itself, but not a wrong owner, which only root can set.
  it.skipIf(!SOAK || process.getuid?.() !== 0)("the runbook of CopilotfleetStateErrors works as printed", async () => {
    const cause = () => {
      chownSync(fleet.root, 1, 1);
      return {};
    };
    const cure = async (printed: string) => {
      // The advice is for the case that the folder is right and the account is wrong.
      expect(adviceIn(printed)).toMatch(/^sudo -u daemon env COPILOTFLEET_HOME=/);
      await operator.type(`chown -R "$(id -u)" ${fleet.root}`);
    };
    await attempt("CopilotfleetStateErrors", {
      cause,
      value: gauge("errors_total", "FLEET_STATE_UNSAFE"),
      kind: "counter",
      minutes: 8,
      cure,
    });
  });

  long("the runbook of CopilotfleetSandboxMissing works as printed", async () => {
    const note = join(fleet.root, "sandbox.json");
    const { pid } = await fleet.spawn("boxed");
    const cause = () => {
      writeFileSync(note, "damaged");
      process.kill(pid ?? 0, "SIGKILL");
      return {};
    };
    const value = gauge("errors_total", "FLEET_SANDBOX_UNUSABLE");
    const cure = () => rmSync(note);
    await attempt("CopilotfleetSandboxMissing", { cause, value, kind: "counter", minutes: 8, cure });
  });

  long("the runbook of CopilotfleetInternalErrors works as printed", async () => {
    const cause = () => {
      fault("throw");
      return {};
    };
    const value = gauge("errors_total", "FLEET_INTERNAL");
    await attempt("CopilotfleetInternalErrors", { cause, value, kind: "counter", minutes: 12, cure: () => fault("") });
  });

  long("the runbook of CopilotfleetUnhealthy works as printed", async () => {
    const cause = () => {
      fault("hang");
      return {};
    };
    const value = (scrape: Scrape) => 1 - metric(scrape, "healthy");
    await attempt("CopilotfleetUnhealthy", { cause, value, cure: () => fault("") });
  });

  long("the runbook of CopilotfleetSupervisorMemoryGrowing works as printed", async () => {
    const scenes: Scene[] = [];
    const large = 256 * 1024 * 1024;
    const cause = async () => {
      fault("leak");
      // The memory of serve grows within seconds. The replay stretches them to hours.
      for (let last = 0; last < large * 1.4; ) {
        const scrape = await operator.scrape();
        last = metric(scrape, "supervisor_memory_bytes");
        scenes.push({ scrape, minutes: 15 });
      }
      return {};
    };
    const value = (scrape: Scrape) => Math.max(0, metric(scrape, "supervisor_memory_bytes") - large);
    // A few of the scrapes are enough. The last one must be among them, because the memory has to end above the limit.
    const story = () => [...spread(scenes, 8), { scrape: scenes.at(-1)?.scrape as Scrape, minutes: 5 }];
    const cure = () => fault("");
    await attempt("CopilotfleetSupervisorMemoryGrowing", { cause, value, story, minutes: 30, cure });
  });

  long("the runbook of CopilotfleetGcOverdue works as printed", async () => {
    await fleet.create("alice", "unreadable");
    const cause = () => {
      damageRecord(fleet.root, "session", "unreadable");
      return {};
    };
    const value = gauge("gc_runs_total", 'outcome="failed"');
    const cure = async (printed: string) => {
      expect(printed).toMatch(/^FAIL {3}damage .*\n.*\n {24}Hint: .*Add --fix /m);
      await operator.type("copilotfleet doctor --fix");
    };
    const lastSuccess = gauge("gc_last_success_timestamp_seconds");
    const isOver = (after: Scrape, during: Scrape) => lastSuccess(after) > lastSuccess(during);
    await attempt("CopilotfleetGcOverdue", { cause, value, kind: "counter", minutes: 7 * 60, cure, isOver });
  });

  long("the runbook of CopilotfleetPurgeUnfinished works as printed", async () => {
    const cause = async () => {
      const store = openStore("file", fleet.root);
      await store.purges.begin({ user: "leaver", begunAt: new Date().toISOString(), pending: ["lost-host"] });
      await store.close();
      return { USER: "leaver" };
    };
    const value = gauge("purges_unfinished");
    await attempt("CopilotfleetPurgeUnfinished", { cause, value, minutes: 25 * 60 });
  });

  describe.skipIf(!SOAK)("the runbooks, followed after crashes", () => {
    const ids = new Map<string, string>();
    let before: Scrape;

    beforeAll(async () => {
      await serving();
      for (const user of ["first", "second", "third"]) ids.set(user, (await fleet.spawn(user)).id);
      await fleet.create("third", "cut");
      before = await operator.scrape();
      const turn = fleet.start(["send", "cut", "!hold", "--user", "third"]);
      await eventually("a held turn", () => model.held.held() > 0);
      // serve must have seen the turn. Otherwise, serve does not know later that the turn was cut.
      await operator.scrapeThat("the turn", (scrape) => metric(scrape, "turns_in_flight") > 0);
      await Promise.all([crashes("first", 3), crashes("second", 3), crashes("third", 2)]);
      await turn.done;
      await operator.scrapeThat(
        "six restarts",
        (scrape) => metric(scrape, "server_restarts_total") - metric(before, "server_restarts_total") > 5,
      );
    });

    /** Kills the server of a user `times` times, each time after serve has started it again. */
    async function crashes(user: string, times: number): Promise<void> {
      let last: number | null = null;
      for (let count = 0; count < times; count++) {
        const { pid } = await eventually(`the server of ${user}`, async () => {
          const server = (await fleet.record(user)).process;
          return server !== null && server.pid !== last ? server : null;
        });
        last = pid;
        process.kill(pid, "SIGKILL");
      }
    }

    const condition = (user: string, rest: Omit<Scenario, "cause">): Scenario => ({
      cause: () => ({ SERVER: ids.get(user) ?? "", USER: user, SESSION: "cut" }),
      story: () => [{ scrape: before, minutes: 10 }],
      minutes: 12,
      kind: "past",
      ...rest,
    });
    /** How much the counter has grown since the scrape before the crashes. */
    const grown =
      (name: string, label = "") =>
      (scrape: Scrape) =>
        metric(scrape, name, label) - metric(before, name, label);

    long("the runbook of CopilotfleetCrashLoop works as printed", async () => {
      await attempt("CopilotfleetCrashLoop", condition("first", { value: grown("server_crash_loops_total") }));
    });

    long("the runbook of CopilotfleetServerFailed works as printed", async () => {
      const value = gauge("servers", 'state="failed"');
      const { cause, ...rest } = condition("second", { value, kind: "gauge" });
      // Restart the server of "first", because its crash loop would keep the alert's condition alive.
      await fleet.ok(["restart", "--user", "first"]);
      await attempt("CopilotfleetServerFailed", { cause, ...rest });
    });

    long("the runbook of CopilotfleetManyRestarts works as printed", async () => {
      await attempt("CopilotfleetManyRestarts", condition("third", { value: grown("server_restarts_total") }));
    });

    long("the runbook of CopilotfleetTurnsCut works as printed", async () => {
      await attempt("CopilotfleetTurnsCut", condition("third", { value: grown("turns_total", 'outcome="cut"') }));
    });
  });

  describe.skipIf(!SOAK)("the runbooks, followed with servers that hang", () => {
    /** Makes the server of a user hang. */
    async function hanging(user: string): Promise<Values> {
      const { id, pid } = await fleet.spawn(user);
      process.kill(pid ?? 0, "SIGSTOP");
      return { SERVER: id, USER: user };
    }

    long("the runbook of CopilotfleetProbesFailing works as printed", async () => {
      // Healthy servers are probed far more often than one that hangs. A few of them keep the failed probes below 5 %.
      await fleet.ok(["stop", "--all"]);
      const before = await operator.scrape();
      const values = await hanging("fourth");
      await operator.scrapeThat("a sick server", (scrape) => metric(scrape, "servers", 'state="unhealthy"') === 1);
      // The alert needs several scrapes, each with more failed probes than the one before it.
      const scenes: Scene[] = [{ scrape: before, minutes: 10 }];
      const value = gauge("probes_total", 'outcome="failed"');
      for (let last = value(before); scenes.length < 5; ) {
        const scrape = await operator.scrapeThat("another failed probe", (each) => value(each) > last);
        last = value(scrape);
        scenes.push({ scrape, minutes: 5 });
      }
      const scenario = { cause: () => values, value, kind: "past", story: () => scenes, minutes: 5 } as const;
      await attempt("CopilotfleetProbesFailing", scenario);
    });

    long("the runbook of CopilotfleetServerUnhealthy works as printed", async () => {
      const value = gauge("servers", 'state="unhealthy"');
      await attempt("CopilotfleetServerUnhealthy", { cause: async () => await hanging("fifth"), value });
    });
  });

  long("the runbook of CopilotfleetTurnsStalled works as printed", async () => {
    const { id } = await fleet.spawn("sixth");
    await fleet.create("sixth", "stalled");
    const turn = fleet.start(["send", "stalled", "!hold", "--user", "sixth"]);
    await attempt("CopilotfleetTurnsStalled", {
      cause: () => ({ SERVER: id, SESSION: "stalled" }),
      value: gauge("turns_stalled"),
    });
    await turn.done;
  });

  long("the runbook of CopilotfleetTurnsFailing works as printed", async () => {
    await fleet.create("sixth", "refused");
    const cause = async () => {
      model.key = "another";
      await fleet.run(["send", "refused", "hello", "--user", "sixth"]);
      return { USER: "sixth", SESSION: "refused" };
    };
    const value = gauge("turns_total", 'outcome="failed"');
    const cure = () => {
      model.key = "good";
    };
    await attempt("CopilotfleetTurnsFailing", { cause, value, kind: "counter", cure, minutes: 13 });
  });

  long("the runbook of CopilotfleetLimitsReached works as printed", async () => {
    await fleet.create("seventh", "limited");
    await fleet.ok(["limit", "set", "--user", "seventh", "--turns-per-minute", "1"]);
    const cause = async () => {
      const { token } = await fleet.json<{ token: string }>(["token", "issue", "--user", "seventh"]);
      const [supervisor] = (await fleet.registry()).supervisors ?? [];
      const client = await RawClient.as(supervisor?.door ?? "", token);
      await client.requestOk("session.resume", { sessionId: "limited" });
      for (let count = 0; count < 150; count++)
        await client.request("session.send", { sessionId: "limited", prompt: "hello" });
      client.socket.destroy();
      return { USER: "seventh" };
    };
    const value = gauge("door_limits_reached_total", 'limit="turnsPerMinute"');
    await attempt("CopilotfleetLimitsReached", { cause, value, kind: "counter", minutes: 13 });
  });

  long("the runbook of CopilotfleetServerMemoryHigh works as printed", async () => {
    const { id } = await fleet.spawn("sixth");
    const cause = async () => {
      const { launchId } = await fleet.record("sixth");
      // With these variables, the process looks like a tool that a session of this server has started.
      const script = "globalThis.taken = Buffer.alloc(400e6, 1); setInterval(() => {}, 1e6)";
      const env = { PATH: process.env.PATH, COPILOTFLEET_OWNER: fleet.root, COPILOTFLEET_LAUNCH_ID: launchId ?? "" };
      others.push(spawn(process.execPath, ["-e", script], { env, stdio: "ignore" }));
      return { SERVER: id, USER: "sixth" };
    };
    const value = (scrape: Scrape) => Math.max(0, metric(scrape, "servers_memory_bytes") - 400e6);
    const each = (scrape: Scrape) => metric(scrape, "servers_memory_bytes") / metric(scrape, "servers", "ready");
    // Replace the limit with one between the memory without the tool and the memory with it.
    const scale = (before: Scrape, during: Scrape) =>
      [["> 1024 * 1024 * 1024", `> ${Math.round((each(before) + each(during)) / 2)}`]] as const;
    await attempt("CopilotfleetServerMemoryHigh", { cause, value, scale });
  });

  long("the runbook of CopilotfleetDrainingLong works as printed", async () => {
    await fleet.create("sixth", "long");
    const turn = fleet.start(["send", "long", "!hold", "--user", "sixth"]);
    await eventually("a held turn", () => model.held.held() > 0);
    const cause = () => {
      process.kill(operator.servePid, "SIGTERM");
      return { SESSION: "long" };
    };
    await attempt("CopilotfleetDrainingLong", { cause, value: gauge("draining") });
    await turn.done;
  });

  long("the runbook of CopilotfleetSupervisorRestarting works as printed", async () => {
    /** One scrape after each start of serve. */
    const starts: Scrape[] = [];
    const cause = async () => {
      while (starts.length < 5) {
        await operator.type("systemctl restart copilotfleet");
        starts.push(await operator.scrapeThat("serve", ({ text }) => text !== null));
      }
      return {};
    };
    const story = () => starts.map((scrape) => ({ scrape, minutes: 5 }));
    await attempt("CopilotfleetSupervisorRestarting", { cause, value: () => 1, kind: "past", story, minutes: 5 });
  });
});

const canMount =
  process.getuid?.() === 0 && spawnSync("unshare", ["--mount", "mount", "-t", "tmpfs", "t", "/tmp"]).status === 0;
if (SOAK && !canMount) console.log("the runbooks for full disks are not tried: only root can mount a small disk");

describe.skipIf(noPromtool || !canMount || !SOAK)("the runbooks, followed on a disk of 64 MB", () => {
  const fleet = testFleet({ ...FAST_HEALTH });
  let operator: Operator;
  let holder: ChildProcess;

  beforeAll(async () => {
    mkdirSync(fleet.root, { mode: 0o700 });
    const script = 'mount -t tmpfs -o size=64m,mode=0700 tmpfs "$1"; echo mounted; exec sleep 1000';
    holder = spawn("unshare", ["--mount", "sh", "-ec", script, "sh", fleet.root], {
      stdio: ["ignore", "pipe", "ignore"],
    });
    await once(holder.stdout as Readable, "data");
    operator = new Operator(fleet, ["nsenter", `--target=${holder.pid}`, "--mount", `--wd=${fleet.folder}`]);
    operator.serveEnv = {};
    await operator.type("systemctl start copilotfleet");
    await operator.scrapeThat("serve", ({ text }) => text !== null);
  });
  afterAll(async () => {
    await operator.type("copilotfleet stop --all --force");
    await operator.end();
    holder.kill("SIGKILL");
  });

  /** Fills the disk with files of a session that is due for gc, until this many MB are free. */
  async function filled(session: string, free: number): Promise<Values> {
    await operator.type(`copilotfleet create --user alice --id ${session} --ttl 1s --prompt hello`);
    const at = '$(copilotfleet ps -o json | sed -n \'s/.*"home": "\\(.*\\)".*/\\1/p\')';
    const kilobytes = `$(( $(df --output=avail "$COPILOTFLEET_HOME" | tail -1) - ${free * 1024} ))`;
    const { output, code } = await operator.type(
      `head -c "${kilobytes}K" /dev/zero > "${at}/session-state/${session}/large"`,
    );
    expect({ output, code }).toEqual({ output: "", code: 0 });
    await eventually("a session that is due", async () => {
      const { output: preview } = await operator.type("copilotfleet gc --ttl 1h --dry-run");
      return preview.includes(session);
    });
    return { SESSION: session };
  }

  const bytesBelow = (limit: number) => (scrape: Scrape) =>
    Math.max(0, limit - metric(scrape, "state_disk_free_bytes"));

  long("the runbook of CopilotfleetDiskLow works as printed", async () => {
    const scale = () => [["2 * 1024 * 1024 * 1024", "40 * 1024 * 1024"]] as const;
    const cause = async () => await filled("low", 30);
    await tried(operator, "CopilotfleetDiskLow", { cause, value: bytesBelow(40 * 1024 * 1024), scale });
  });

  long("the runbook of CopilotfleetDiskFull works as printed", async () => {
    const scale = () => [["256 * 1024 * 1024", "8 * 1024 * 1024"]] as const;
    const cause = async () => await filled("full", 2);
    await tried(operator, "CopilotfleetDiskFull", { cause, value: bytesBelow(8 * 1024 * 1024), scale });
  });
});

/** Returns `count` evenly spaced items, the first item included. Repeats items if there are fewer than `count`. */
function spread<T>(items: readonly T[], count: number): T[] {
  return Array.from({ length: count }, (_, index) => items[Math.floor((index * items.length) / count)] as T);
}
