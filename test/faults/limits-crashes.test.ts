import { existsSync, mkdirSync, rmdirSync } from "node:fs";
import { basename, join } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { system } from "../../src/base/system/system.js";
import { processesInGroup } from "../../src/sandbox/limits.js";
import type { ServerView } from "../../src/servers/server.js";
import { eventually } from "../fixtures/eventually.js";
import { type FaultFleet, faultFleet, lateServers } from "../fixtures/fleets/fault-fleet.js";
import { FAST_HEALTH, serve } from "../fixtures/fleets/serve.js";
import { startToolModel, type ToolModel } from "../fixtures/models/tool-model.js";
import { isRunning, killed } from "../fixtures/processes.js";
import { grouped } from "../fixtures/programs/cgroups.js";

/** These tests check the control groups of servers with limits after a server or a process of the fleet was killed. */

const LIMITS = {
  COPILOTFLEET_SANDBOX_MEMORY: "400mb",
  COPILOTFLEET_SANDBOX_PROCESSES: "80",
  COPILOTFLEET_SANDBOX_CPU: "2",
};

/** A fleet whose agents call the tools that a prompt names. */
async function toolFleet(model: ToolModel): Promise<FaultFleet> {
  return await faultFleet({ ...FAST_HEALTH, ...LIMITS, ...model.env });
}

const toolPrompt = (command: string) => `!tool bash ${JSON.stringify({ command, description: "works" })}`;

const groupsOf = ({ sandbox }: Pick<ServerView, "sandbox">) => [...(sandbox.limits?.cgroups ?? [])];

/** The control groups of alice's server. Fails if the server is not in all of them. */
async function heldGroups(fleet: FaultFleet): Promise<string[]> {
  const server = await fleet.server("alice");
  const groups = groupsOf(server);
  expect(groups).toHaveLength(3);
  for (const group of groups) expect(processesInGroup(group)).toContain(server.pid);
  return groups;
}

it.skipIf(!grouped)(
  "after serve is killed, the next serve reports a limit that a server reaches, and stop removes the server's control groups",
  async () => {
    await using model = await startToolModel();
    const fleet = await toolFleet(model);
    await fleet.create("alice", "talk");
    const { pid } = await fleet.server("alice");
    const groups = await heldGroups(fleet);
    const killedServe = await serve(fleet);
    killedServe.kill("SIGKILL");
    await killedServe.done;
    const serving = await serve(fleet);
    const fork = `perl -e 'for (1..120) { defined($pid = fork) or last; sleep(5), exit if $pid == 0 }'`;
    await fleet.send("alice", "talk", toolPrompt(fork));
    await serving.logged(/^server alice-\w+ reached sandbox\.processes$/);
    expect((await fleet.server("alice")).pid).toBe(pid);
    expect(await heldGroups(fleet)).toEqual(groups);
    await fleet.ok(["stop", "--user", "alice"]);
    expect(groups.filter(existsSync)).toEqual([]);
  },
);

it.skipIf(!grouped).each([
  ["ps", ["ps"]],
  ["gc", ["gc", "--ttl", "1d"]],
  ["doctor --fix", ["doctor", "--quick", "--fix"]],
])("%s removes the control groups of a server that was killed", async (_, command) => {
  const fleet = await faultFleet(LIMITS);
  await fleet.spawn("alice");
  const groups = await heldGroups(fleet);
  for (const pid of groups.flatMap(processesInGroup)) if (isRunning(pid)) await killed(pid);
  expect(groups.filter(existsSync)).toEqual(groups);
  await fleet.ok(command);
  expect(groups.filter(existsSync)).toEqual([]);
});

it.skipIf(!grouped)(
  "serve removes the control groups of a server that was killed, and restarts the server with new groups",
  async () => {
    const fleet = await faultFleet({ ...FAST_HEALTH, ...LIMITS });
    await fleet.spawn("alice");
    const groups = await heldGroups(fleet);
    const { pid } = await fleet.server("alice");
    const serving = await serve(fleet);
    await killed(pid ?? 0);
    await eventually("a new server", async () => {
      const server = await fleet.server("alice");
      return server.state === "ready" && server.pid !== pid;
    });
    expect((await heldGroups(fleet)).filter((group) => groups.includes(group))).toEqual([]);
    expect(groups.filter(existsSync)).toEqual([]);
    await serving.end();
  },
);

it.skipIf(!grouped)("ps removes the control groups of a server whose spawn was killed during the start", async () => {
  const gate = (await faultFleet()).folder;
  const fleet = await faultFleet({ ...lateServers(gate), ...LIMITS });
  const starting = fleet.start(["spawn", "--user", "alice"]);
  const groups = await eventually("the groups are made", async () => {
    const { sandbox } = await fleet.record("alice").catch(() => ({ sandbox: undefined }));
    const groups = [...(sandbox?.limits?.cgroups ?? [])];
    return groups.length === 3 && groups.every((group) => processesInGroup(group).length > 0) && groups;
  });
  starting.child.kill("SIGKILL");
  await starting.done;
  await fleet.ok(["ps"]);
  expect(groups.filter(existsSync)).toEqual([]);
});

/**
 * Makes a group for a service in each cgroup v1 hierarchy that has one of the controllers memory, pids and cpu.
 *
 * @returns the groups, and a command prefix that runs a command in a cgroup namespace whose roots are these groups
 */
function privateGroups(): { groups: string[]; under: string[] } {
  const own = system()
    .processes.controlGroups()
    .filter(({ controllers }) => controllers.some((name) => ["memory", "pids", "cpu"].includes(name)));
  const groups = own.map(({ folder }) => join(folder, `fleet-service-${process.pid}`));
  for (const group of groups) {
    mkdirSync(group);
    // rmdir, and thus the test, fails if the control group of a server is left in this group.
    onTestFinished(() => rmdirSync(group));
  }
  const mounts = own.map(({ controllers, mountPoint }) => `mount -t cgroup -o ${controllers} none ${mountPoint}`);
  const script = [
    ...groups.map((group) => `echo 0 > ${group}/cgroup.procs`),
    `exec unshare --cgroup --mount sh -c '${mounts.join(" && ")} && exec "$@"' sh "$@"`,
  ];
  return { groups, under: ["sh", "-c", script.join(" && "), "sh"] };
}

it.skipIf(!grouped)(
  "outside a service's cgroup namespace, ps shows its servers' limits, and stop ends processes hidden in their groups",
  async () => {
    await using model = await startToolModel();
    const { groups, under } = privateGroups();
    const fleet = await toolFleet(model);
    await fleet.ok(["create", "--user", "alice", "--id", "talk"], { under });
    const server = await fleet.server("alice");
    const names = new Set(groupsOf(server).map((group) => basename(group)));
    expect(groupsOf(server).filter(existsSync), "the paths in the namespace").toEqual([]);
    const seen = groups.flatMap((group) => [...names].map((name) => join(group, name)));
    for (const group of seen) expect(processesInGroup(group)).toContain(server.pid);
    const work = "perl -e 'for (1..120) { defined($pid = fork) or last; sleep(1), exit if $pid == 0 }'";
    await fleet.send(
      "alice",
      "talk",
      toolPrompt(`${work}; env -i setsid sleep 300 >/dev/null 2>&1 </dev/null & disown`),
    );
    const hidden = await eventually("the hidden process", () => {
      const pids = processesInGroup(seen[0] ?? "").filter((pid) => pid !== server.pid);
      return pids.length > 0 && pids;
    });
    await eventually("the limit is seen", async () => {
      const { reached } = (await fleet.server("alice")).sandbox.limits ?? {};
      return (reached?.processes ?? 0) > 0;
    });
    await fleet.ok(["stop", "--user", "alice"]);
    expect(seen.filter(existsSync)).toEqual([]);
    expect(hidden.filter(isRunning)).toEqual([]);
  },
);
