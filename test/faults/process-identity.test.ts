import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { expect, it, onTestFinished } from "vitest";
import type { ProcessIdentity } from "../../src/base/server.js";
import { identify, isAlive } from "../../src/runtime/process/process-table.js";
import { COMMAND } from "../fixtures/commands/command.js";
import { eventually } from "../fixtures/eventually.js";
import { errorOf, expectConsistent, type FaultFleet, faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { childrenOf, isRunning, killed, sleeper, statusOf } from "../fixtures/processes.js";

/** Reasons why the process in a record is not the server, each with a change that makes a record fit the reason. */
const OTHERS: [string, (found: ProcessIdentity) => ProcessIdentity][] = [
  ["its PID was reused", (found) => ({ ...found, startTicks: String(Number(found.startTicks) - 1) })],
  ["the machine was booted again", (found) => ({ ...found, bootId: "00000000-0000-4000-8000-000000000000" })],
  ["the process is in another PID namespace", (found) => ({ ...found, pidNamespace: "pid:[1]" })],
];

/** Kills a server, and makes its `ready` record name a process outside the fleet. Resolves with that process's PID. */
async function mistaken(fleet: FaultFleet, change: (found: ProcessIdentity) => ProcessIdentity): Promise<number> {
  const server = await fleet.spawn("alice");
  await killed(server.pid);
  const other = sleeper();
  const found = identify(other);
  if (found === null) throw new Error("sleep has ended");
  await fleet.tamper("alice", (record) => {
    record.process = change(found);
  });
  return other;
}

it.each(OTHERS)("a command treats a recorded server as dead, and signals no process, when %s", async (_why, change) => {
  for (const command of ["ps", "stop", "restart", "spawn"]) {
    const fleet = await faultFleet();
    const other = await mistaken(fleet, change);
    const args = command === "ps" ? [] : ["--user", "alice"];
    await fleet.json([command, ...args]);
    expect(isRunning(other), `${command} spares it`).toBe(true);
    const expected = { ps: "failed", stop: "stopped" }[command] ?? "ready";
    expect(await fleet.record("alice")).toMatchObject({ state: expected });
    const shown = await expectConsistent(fleet);
    expect(shown).toMatchObject([{ state: expected }]);
    expect(shown[0]?.pid).not.toBe(other);
    expect((await fleet.run(["connect", "--user", "alice"])).code).toBe(expected === "ready" ? 0 : 7);
    await fleet.json(["stop", "--all", "--force"]);
  }
});

it("connect sends no token when the server's recorded process is alive but does not own the port", async () => {
  const fleet = await faultFleet();
  await killed((await fleet.spawn("alice")).pid);
  const other = sleeper();
  await fleet.tamper("alice", (record) => {
    record.process = identify(other);
  });
  const result = await fleet.run(["connect", "--user", "alice", "--json"]);
  expect(result.code).toBe(7);
  expect(errorOf(result)).toMatchObject({ code: "FLEET_SERVER_LOST" });
  await fleet.tamper("alice", (record) => {
    record.process = null;
  });
});

it("a claim counts as abandoned when its process has ended or its PID belongs to another process", async () => {
  const fleet = await faultFleet();
  const { pid } = await fleet.spawn("alice");
  const other = sleeper();
  const found = identify(other);
  if (found === null) throw new Error("sleep has ended");
  for (const state of ["draining", "ready"] as const) {
    await fleet.tamper("alice", (record) => {
      record.state = state;
      record.claim = { ...found, startTicks: "1" };
    });
    expect(await fleet.spawn("alice")).toMatchObject({ state: "ready", pid });
  }
  await fleet.tamper("alice", (record) => {
    record.claim = { ...found, bootId: "another boot" };
  });
  expect(await fleet.json(["stop", "--user", "alice"])).toMatchObject({ stopped: [{ outcome: "drained" }] });
  expect(isRunning(other)).toBe(true);
});

it("the fleet still recognises its servers after the machine was renamed", async (ctx) => {
  const rename = ["unshare", "-u", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"];
  if (spawnSync(rename[0] ?? "", [...rename.slice(1), "true"]).status !== 0) return ctx.skip("needs root and unshare");
  const fleet = await faultFleet();
  const { pid } = await fleet.spawn("alice");
  expect(await fleet.json(["ps"], { under: rename })).toMatchObject({ servers: [{ state: "ready", pid }] });
  expect(await fleet.json(["spawn", "--user", "alice"], { under: rename })).toMatchObject({ created: false });
  expect(isRunning(pid ?? 0)).toBe(true);
});

it("a server that is a zombie because its parent does not reap it counts as dead", async (ctx) => {
  // The fleet runs in a PID namespace whose first process, the parent of all orphans, never reaps them.
  const sleep = ["unshare", "-pf", "--mount-proc", "--kill-child", "sleep", "1000"];
  if (spawnSync("unshare", ["-pf", "--mount-proc", "true"]).status !== 0) return ctx.skip("needs root and unshare");
  // In bwrap, no server becomes a zombie, because process 1 of its namespace reaps it.
  const fleet = await faultFleet({ COPILOTFLEET_SANDBOX_MODE: "none" });
  const [program = "", ...args] = sleep;
  const init = spawn(program, args, { stdio: "ignore" });
  onTestFinished(() => void init.kill("SIGKILL"));
  const first = await eventually("the namespace", () => childrenOf(init.pid ?? 0)[0]);
  const inside = ["nsenter", "-t", String(first), "-p", "-m"];
  const { server } = await fleet.json<{ server: { pid: number } }>(["spawn", "--user", "alice"], { under: inside });
  const { pid } = server;
  const ending = `until grep -q "^State:.Z" /proc/${pid}/status; do sleep 0.01; done`;
  const look = `cat /proc/${pid}/stat; kill -9 ${pid}; timeout 30 sh -c '${ending}'; cat /proc/${pid}/stat`;
  const { stdout } = spawnSync(inside[0] ?? "", [...inside.slice(1), "sh", "-c", look], { encoding: "utf8" });
  expect(
    stdout
      .trim()
      .split("\n")
      .map((line) => line.slice(line.lastIndexOf(")") + 2)[0]),
  ).toEqual([expect.stringMatching(/[SR]/), "Z"]);
  expect(await fleet.json(["ps"], { under: inside })).toMatchObject({ servers: [{ state: "failed", pid: null }] });
  const again = await fleet.json<{ server: object }>(["spawn", "--user", "alice"], { under: inside });
  expect(again).toMatchObject({ created: true, server: { state: "ready" } });
  expect(await fleet.json(["stop", "--all"], { under: inside })).toMatchObject({ stopped: [{ outcome: "drained" }] });
});

it("ps, spawn and stop do not signal a process that got the PID of a dead server", async (ctx) => {
  const reuse = `
    set -e
    "$@" spawn --user alice > /dev/null
    pid=$("$@" ps --json | sed -n 's/.*"pid": \\([0-9]*\\),/\\1/p')
    kill -9 "$pid"
    while [ -e "/proc/$pid" ]; do sleep 0.01; done
    for _ in 1 2 3 4 5 6 7 8 9 10; do
      echo $((pid - 1)) > /proc/sys/kernel/ns_last_pid
      sleep 1000 & other=$!
      [ "$other" = "$pid" ] && break
      kill "$other"
    done
    echo "reused $([ "$other" = "$pid" ] && echo yes || echo no)"
    "$@" ps --json
    kill -0 "$other" && echo "spared by ps"
    "$@" spawn --user alice > /dev/null
    "$@" stop --all > /dev/null
    kill -0 "$other" && echo "spared by stop"
  `;
  if (
    spawnSync("unshare", ["-pf", "--mount-proc", "sh", "-c", "echo 100 > /proc/sys/kernel/ns_last_pid"]).status !== 0
  ) {
    return ctx.skip("needs root, unshare and a kernel with ns_last_pid");
  }
  const fleet = await faultFleet();
  const child = spawn(
    "unshare",
    ["-pf", "--mount-proc", "--kill-child", "sh", "-c", reuse, "sh", process.execPath, COMMAND],
    { env: fleet.env, stdio: ["ignore", "pipe", "pipe"] },
  );
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk: Buffer) => (output += chunk.toString()));
  await once(child, "close");
  expect(output).toContain("reused yes");
  expect(output).toMatch(/"state": "failed"/);
  expect(output).toContain("spared by ps");
  expect(output).toContain("spared by stop");
});

it("a process counts as alive even if its first thread has ended", async (ctx) => {
  const program = `
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
ctypes.CDLL(None).pthread_exit(None)
`;
  const child = spawn("python3", ["-c", program], { stdio: "ignore" });
  onTestFinished(() => void child.kill("SIGKILL"));
  const missing = new Promise<true>((resolve) => child.once("error", () => resolve(true)));
  const zombie = eventually("the end of the thread", () => statusOf(child.pid ?? 0).state === "Z").then(() => false);
  if (await Promise.race([missing, zombie])) return ctx.skip("needs python3");
  const found = identify(child.pid ?? 0);
  expect(found !== null && isAlive(found)).toBe(true);
});
