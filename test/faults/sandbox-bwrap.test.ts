import { spawn, spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import type { ServerRecord } from "../../src/base/server.js";
import type { ServerView } from "../../src/servers/server.js";
import type { SessionView } from "../../src/sessions/view.js";
import { eventually } from "../fixtures/eventually.js";
import { type FaultFleet, faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { FAST_HEALTH, serve } from "../fixtures/fleets/serve.js";
import { directSession, echoModel } from "../fixtures/fleets/turns.js";
import { childrenOf, isRunning, killed } from "../fixtures/processes.js";
import { bwrapProblem } from "../fixtures/programs/bwrap.js";

/** Tests of servers in the sandbox bwrap, where the runtime's PID inside the sandbox differs from its PID outside. */

const BWRAP = { COPILOTFLEET_SANDBOX_MODE: "bwrap" };

interface Processes {
  runtime: number;
  /** The PID of bwrap outside the sandbox. The runtime has the same PID inside the sandbox. */
  bwrap: number;
}

async function processesOf(fleet: FaultFleet, user = "alice"): Promise<Processes> {
  const { process: identity } = await fleet.record(user);
  if (identity?.innerPid === undefined) throw new Error("the record has no inner PID");
  return { runtime: identity.pid, bwrap: identity.innerPid };
}

async function stateOf(fleet: FaultFleet, id: string): Promise<string | undefined> {
  const { sessions } = await fleet.json<{ sessions: SessionView[] }>(["list"]);
  return sessions.find((session) => session.id === id)?.state;
}

/** Kills the runtime, and waits for the server that serve starts instead. Resolves with the new server's processes. */
async function replacementOf(fleet: FaultFleet, { runtime }: Processes): Promise<Processes> {
  process.kill(runtime, "SIGKILL");
  return await eventually("the new server", async () => {
    const found = await processesOf(fleet).catch(() => null);
    return found !== null && found.runtime !== runtime ? found : null;
  });
}

it.skipIf(bwrapProblem !== undefined)(
  "list, ps, evict and gc detect which sessions a server has loaded, even if a killed server left its lock file",
  async () => {
    const fleet = await faultFleet(BWRAP);
    const { home } = await fleet.spawn("alice");
    const model = await echoModel();
    await fleet.create("alice", "loaded");
    await fleet.send("alice", "loaded", "hello");
    await directSession(fleet, model, "loaded", { resume: true });
    const first = await processesOf(fleet);
    const lockOf = ({ bwrap }: Processes) => join(home, "session-state", "loaded", `inuse.${bwrap}.lock`);
    expect(existsSync(lockOf(first))).toBe(true);
    expect(await stateOf(fleet, "loaded")).toBe("active");
    expect(await fleet.server("alice")).toMatchObject({ pid: first.runtime, activeSessions: 1 });
    const gc = await fleet.json(["gc", "--ttl", "1ms", "--dry-run"]);
    expect(gc).toMatchObject({ skipped: [{ id: "loaded", reason: "active" }] });
    await fleet.ok(["evict", "loaded"]);
    expect(existsSync(lockOf(first))).toBe(false);
    expect(await stateOf(fleet, "loaded")).toBe("idle");

    await directSession(fleet, model, "loaded", { resume: true });
    await killed(first.runtime);
    await fleet.spawn("alice");
    const second = await processesOf(fleet);
    expect(second.bwrap).not.toBe(first.bwrap);
    expect(existsSync(lockOf(first)), "the lock of the killed server").toBe(true);
    expect(await stateOf(fleet, "loaded")).toBe("idle");
    expect(await fleet.server("alice")).toMatchObject({ activeSessions: 0 });

    await directSession(fleet, model, "loaded", { resume: true });
    expect(await stateOf(fleet, "loaded")).toBe("active");
    expect(existsSync(lockOf(second))).toBe(true);
  },
);

it.skipIf(bwrapProblem !== undefined)(
  "when only the runtime is killed, its sandbox ends too, and serve starts a new server and logs the signal",
  async () => {
    const fleet = await faultFleet({ ...BWRAP, ...FAST_HEALTH });
    const serving = await serve(fleet);
    await fleet.create("alice", "talk");
    const { log } = await fleet.server("alice");
    const first = await processesOf(fleet);
    const second = await replacementOf(fleet, first);
    expect(isRunning(first.bwrap)).toBe(false);
    expect(fleet.processes()).toEqual(expect.arrayContaining([second.bwrap, second.runtime]));
    expect(fleet.processes().length, "bwrap, process 1 and the runtime").toBe(3);
    // serve started the second server's process. So it learns which signal ended this process, and logs it.
    await replacementOf(fleet, second);
    expect(readFileSync(log, "utf8")).toContain(`Process ${second.runtime} ended: killed by SIGKILL`);
    expect(await fleet.send("alice", "talk", "hello")).toBe("[turn 1] hello");
    await serving.end();
  },
);

it.skipIf(bwrapProblem !== undefined)(
  "when only bwrap is killed, the server keeps running, and stop leaves no process of the server",
  async () => {
    const fleet = await faultFleet(BWRAP);
    await fleet.create("alice", "talk");
    const { runtime, bwrap } = await processesOf(fleet);
    await killed(bwrap);
    expect(await fleet.send("alice", "talk", "hello")).toBe("[turn 1] hello");
    expect(await fleet.server("alice")).toMatchObject({ pid: runtime, state: "ready" });
    await fleet.ok(["stop", "--user", "alice"]);
    expect(fleet.processes()).toEqual([]);
  },
);

it.skipIf(bwrapProblem !== undefined)(
  "a server outlives its starter and serve, and doctor --fix adopts the server if its start was not recorded",
  async () => {
    const fleet = await faultFleet(BWRAP);
    await fleet.create("alice", "talk");
    const before = await processesOf(fleet);
    const serving = await serve(fleet);
    serving.kill("SIGKILL");
    await serving.done;
    await fleet.tamper("alice", (record: ServerRecord) => {
      record.state = "starting";
      record.process = null;
      record.claim = null;
    });
    await fleet.ok(["doctor", "--quick", "--fix"]);
    expect(await processesOf(fleet)).toEqual(before);
    expect(await fleet.send("alice", "talk", "hello")).toBe("[turn 1] hello");
  },
);

it.skipIf(bwrapProblem !== undefined)(
  "restart --rolling replaces a server, and its sessions go on in the new sandbox",
  async () => {
    const fleet = await faultFleet(BWRAP);
    await fleet.create("alice", "talk");
    await fleet.send("alice", "talk", "hello");
    const { id } = await fleet.server("alice");
    const before = await processesOf(fleet);
    await fleet.ok(["restart", id, "--rolling"]);
    const after = await processesOf(fleet);
    expect(after.runtime).not.toBe(before.runtime);
    expect(after.bwrap).not.toBe(before.bwrap);
    await eventually("the end of the old sandbox", () => fleet.processes().length === 3);
    expect(await fleet.send("alice", "talk", "again")).toBe("[turn 2] again");
  },
);

it.skipIf(bwrapProblem !== undefined)("stop ends a suspended server and all processes of its sandbox", async () => {
  const fleet = await faultFleet(BWRAP);
  await fleet.spawn("alice");
  const { runtime } = await processesOf(fleet);
  process.kill(runtime, "SIGSTOP");
  await fleet.ok(["stop", "--user", "alice", "--force"]);
  expect(fleet.processes()).toEqual([]);
});

it.skipIf(bwrapProblem !== undefined)(
  "ps names the exit code of a server that ended after its starter exited, even if no process reaps bwrap",
  async (ctx) => {
    if (spawnSync("unshare", ["-pf", "--mount-proc", "true"]).status !== 0) return ctx.skip("needs root and unshare");
    const fleet = await faultFleet(BWRAP);
    // The first process of this namespace becomes the parent of orphans and never reaps them.
    const init = spawn("unshare", ["-pf", "--mount-proc", "--kill-child", "sleep", "1000"], { stdio: "ignore" });
    onTestFinished(() => void init.kill("SIGKILL"));
    const first = await eventually("the namespace", () => childrenOf(init.pid ?? 0)[0]);
    const under = ["nsenter", "-t", String(first), "-p", "-m"];
    const { server } = await fleet.json<{ server: { pid: number } }>(["spawn", "--user", "alice"], { under });
    expect(spawnSync(under[0] ?? "", [...under.slice(1), "sh", "-c", `kill -TERM ${server.pid}`]).status).toBe(0);
    const shown = await eventually("the end", async () => {
      const { servers } = await fleet.json<{ servers: ServerView[] }>(["ps"], { under });
      return servers[0]?.state === "failed" && servers[0];
    });
    expect(shown.failure).toMatch(/^exited with code 0/);
    const again = await fleet.json<{ server: object }>(["spawn", "--user", "alice"], { under });
    expect(again).toMatchObject({ created: true, server: { state: "ready" } });
    expect(await fleet.json(["stop", "--all"], { under })).toMatchObject({ stopped: [{ outcome: "drained" }] });
  },
);
