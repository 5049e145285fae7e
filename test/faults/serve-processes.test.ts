import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:net";
import { dirname, join } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import type { ProcessIdentity, ServerRecord } from "../../src/base/server.js";
import { identify } from "../../src/runtime/process/process-table.js";
import { COMMAND } from "../fixtures/commands/command.js";
import { eventually } from "../fixtures/eventually.js";
import { expectConsistent, type FaultFleet, fake, faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { FAST_HEALTH, type Serving, serve } from "../fixtures/fleets/serve.js";
import {
  childrenOf,
  isRunning,
  killed,
  processesAround,
  processesWith,
  sleeper,
  statusOf,
} from "../fixtures/processes.js";
import { unused } from "../fixtures/sessions/unused.js";

/** The identity of a live process, in the form in which a server's record stores it. */
function identityOf(pid: number): ProcessIdentity {
  const found = identify(pid);
  if (found === null) throw new Error(`process ${pid} has ended`);
  return found;
}

/** Suspends `serve` while `work` runs, so that it sees all changes of `work` at once when it resumes. */
async function behindItsBack(serving: Serving, work: () => Promise<void>): Promise<void> {
  serving.kill("SIGSTOP");
  await eventually("the pause of serve", () => statusOf(serving.pid).state === "T");
  await work();
  serving.kill("SIGCONT");
}

/** The user's server once it is ready again in a process other than `before`. */
async function startedAgain(fleet: FaultFleet, user: string, before: number | null): Promise<ServerRecord> {
  return await eventually(
    `another server of ${user}`,
    async () => {
      const record = await fleet.record(user);
      return record.state === "ready" && record.process?.pid !== before ? record : undefined;
    },
    40_000,
  );
}

it("serve does not end a process to which the kernel gave the PID of a dead server", async (ctx) => {
  const reuse = `
    set -e
    "$@" spawn --user alice > /dev/null
    pid=$("$@" ps --json | sed -n 's/.*"pid": \\([0-9]*\\),/\\1/p')
    "$@" serve > /dev/null 2> "$LOG" & serve=$!
    until grep -q '"msg":"serving"' "$LOG"; do sleep 0.01; done
    kill -STOP "$serve"
    kill -9 "$pid"
    while [ -e "/proc/$pid" ]; do sleep 0.01; done
    for _ in 1 2 3 4 5 6 7 8 9 10; do
      echo $((pid - 1)) > /proc/sys/kernel/ns_last_pid
      sleep 1000 & other=$!
      [ "$other" = "$pid" ] && break
      kill "$other"
    done
    echo "reused $([ "$other" = "$pid" ] && echo yes || echo no)"
    kill -CONT "$serve"
    until grep -q 'is ready"' "$LOG"; do sleep 0.01; done
    "$@" ps --json
    kill -TERM "$serve"
    wait "$serve" && echo "serve ended well"
    kill -0 "$other" && echo "spared"
  `;
  const possible = ["-pf", "--mount-proc", "sh", "-c", "echo 100 > /proc/sys/kernel/ns_last_pid"];
  if (spawnSync("unshare", possible).status !== 0) return ctx.skip("needs root, unshare and a kernel with ns_last_pid");
  const fleet = await faultFleet(FAST_HEALTH);
  const log = join(dirname(fleet.root), "serve.log");
  const child = spawn(
    "unshare",
    ["-pf", "--mount-proc", "--kill-child", "sh", "-c", reuse, "sh", process.execPath, COMMAND],
    {
      env: {
        ...fleet.env,
        LOG: log,
        COPILOTFLEET_SERVE_METRICS: "127.0.0.1:0",
        COPILOTFLEET_SERVE_LISTEN: "127.0.0.1:0",
      },
      stdio: ["ignore", "pipe", "pipe"],
    },
  );
  onTestFinished(() => void child.kill("SIGKILL"));
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk: Buffer) => (output += chunk.toString()));
  await once(child, "close");
  const story = `${output}\n${readFileSync(log, "utf8")}`;
  expect(story).toContain("reused yes");
  expect(output).toMatch(/"state": "ready"/);
  expect(story).toContain("serve ended well");
  expect(story).toContain("spared");
});

it("serve treats a zombie server as dead and starts it again", async (ctx) => {
  if (spawnSync("unshare", ["-pf", "--mount-proc", "true"]).status !== 0) return ctx.skip("needs root and unshare");
  // In bwrap, no server becomes a zombie, because process 1 of its namespace reaps it.
  const fleet = await faultFleet({ ...FAST_HEALTH, COPILOTFLEET_SANDBOX_MODE: "none" });
  // Orphans get the first process of this PID namespace, `sleep`, as their parent. It never reaps them, so a killed
  // server stays a zombie.
  const init = spawn("unshare", ["-pf", "--mount-proc", "--kill-child", "sleep", "1000"], { stdio: "ignore" });
  onTestFinished(() => void init.kill("SIGKILL"));
  const first = await eventually("the namespace", () => childrenOf(init.pid ?? 0)[0]);
  const under = ["nsenter", "-t", String(first), "-p", "-m"];
  const inside = (script: string) => spawnSync(under[0] ?? "", [...under.slice(1), "sh", "-c", script]);
  const { server } = await fleet.json<{ server: { pid: number } }>(["spawn", "--user", "alice"], { under });
  const serving = await serve(fleet, { under });
  expect(inside(`kill -9 ${server.pid}`).status).toBe(0);
  const again = await startedAgain(fleet, "alice", server.pid);
  expect(inside(`cat /proc/${server.pid}/stat`).stdout.toString()).toMatch(/\) Z /);
  expect(again).toMatchObject({ crashes: 1 });
  // The metric shows what serve saw last. That may have been before the server was ready.
  await expect.poll(async () => await serving.metric("servers", { state: "ready" })).toBe(1);
  await fleet.json(["stop", "--all"], { under });
  inside(`kill -TERM ${(await fleet.registry()).supervisors?.[0]?.process.pid}`);
  expect(await serving.done).toMatchObject({ code: 0 });
});

it("serve starts all servers again after a reboot, and signals no process that has a recorded PID", async () => {
  const fleet = await faultFleet(FAST_HEALTH);
  const users = ["alice", "bob", "carol"];
  const others: number[] = [];
  const before: ServerRecord[] = [];
  for (const user of users) {
    const { pid } = await fleet.spawn(user);
    before.push(await fleet.record(user));
    await killed(pid);
    const other = sleeper();
    others.push(other);
    await fleet.tamper(user, (record) => {
      record.process = { ...identityOf(other), bootId: "00000000-0000-4000-8000-000000000000" };
    });
  }
  const serving = await serve(fleet);
  for (const [index, user] of users.entries()) {
    const again = await startedAgain(fleet, user, others[index] ?? null);
    expect(again).toMatchObject({ home: before[index]?.home });
    expect(again.launchId).not.toBe(before[index]?.launchId);
  }
  expect(others.filter(isRunning)).toEqual(others);
  await expectConsistent(fleet);
  expect(await serving.end()).toMatchObject({ code: 0 });
  expect(others.filter(isRunning)).toEqual(others);
});

it("when another program has taken a server's port, serve restarts the server on another port and sends the program nothing", async () => {
  const fleet = await faultFleet(FAST_HEALTH);
  const { pid, port, home } = await fleet.spawn("alice");
  await fleet.json(["create", "--id", "talk", "--user", "alice", "--prompt", "hi"]);
  const heard: Buffer[] = [];
  let connections = 0;
  const stranger = createServer((socket) => {
    connections++;
    socket.on("error", () => socket.destroy());
    socket.on("data", (chunk) => heard.push(chunk));
    onTestFinished(() => void socket.destroy());
  });
  onTestFinished(() => void stranger.close());
  const serving = await serve(fleet);
  const token = readFileSync(join(dirname(home), "connection-token"), "utf8");
  await behindItsBack(serving, async () => {
    await killed(pid);
    stranger.listen({ host: "127.0.0.1", port: port ?? 0 });
    await once(stranger, "listening");
  });
  const again = await startedAgain(fleet, "alice", pid);
  expect(again.port).toBeGreaterThan(fleet.ports.from);
  expect(await fleet.json(["send", "talk", "again", "--user", "alice"])).toMatchObject({ reply: "[turn 2] again" });
  // Wait for more probes. A probe that went to the stranger would fail, and the next would open a new connection.
  const probes = await serving.metric("probes_total");
  await eventually("more probes", async () => (await serving.metric("probes_total")) >= probes + 5);
  await expectConsistent(fleet);
  expect(await serving.end()).toMatchObject({ code: 0 });
  expect({ connections, heard: Buffer.concat(heard).toString() }).toEqual({ connections: 0, heard: "" });
  expect(heard.join("")).not.toContain(token);
});

it("serve kills a server that ignores SIGTERM once the grace period is over, and then ends", async () => {
  const fleet = await faultFleet({ ...FAST_HEALTH, COPILOT_CLI_PATH: fake("deaf.mjs") });
  const { pid } = await fleet.spawn("alice");
  const serving = await serve(fleet, { args: ["--json"] });
  // The metric shows what serve saw last. That may have been before the server was ready.
  await expect.poll(async () => await serving.metric("servers", { state: "ready" })).toBe(1);
  const begun = performance.now();
  const ended = await serving.end();
  expect(ended.code).toBe(0);
  expect(JSON.parse(ended.stdout)).toMatchObject({ stopped: [{ outcome: "killed", cut: [] }], failed: [] });
  expect(performance.now() - begun).toBeGreaterThan(4_500);
  expect(isRunning(pid ?? 0)).toBe(false);
  expect(fleet.processes()).toEqual([]);
});

it.each(["hang", "drain"] as const)("serve leaves no grandchild of a server behind after a %s", async (how) => {
  const forkedBy = unused(`${how}-${process.pid}`);
  const mark = `FORKED_BY=${forkedBy}`;
  const fleet = await faultFleet({
    ...FAST_HEALTH,
    COPILOT_CLI_PATH: fake("forks.mjs"),
    COPILOTFLEET_RUNTIME_ENV: "FORKED_BY",
    FORKED_BY: forkedBy,
  });
  const serving = await serve(fleet);
  const { pid } = await fleet.spawn("alice");
  await serving.logged(/^watching server/);
  const old = await eventually("the grandchildren", () => {
    const all = processesAround(pid ?? 0, "session");
    return all.length >= 3 && processesWith(mark).length > all.length ? all : undefined;
  });
  const { launchId } = await fleet.record("alice");
  if (how === "hang") {
    process.kill(pid ?? 0, "SIGSTOP");
    await startedAgain(fleet, "alice", pid);
    expect(await serving.metric("server_restarts_total", { reason: "hang" })).toBe(1);
    expect(old.filter(isRunning)).toEqual([]);
    expect(processesWith(`COPILOTFLEET_LAUNCH_ID=${launchId}`)).toEqual([]);
  }
  const last = processesAround((await fleet.record("alice")).process?.pid ?? 0, "session");
  expect(await serving.end()).toMatchObject({ code: 0 });
  expect([...old, ...last].filter(isRunning)).toEqual([]);
  expect(processesWith(mark)).toEqual([]);
});
