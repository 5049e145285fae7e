import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { serverIdOf } from "../../src/base/ids.js";
import { system } from "../../src/base/system/system.js";
import { homeOf } from "../../src/runtime/files/server-folder.js";
import { processesInGroup } from "../../src/sandbox/limits.js";
import type { ServerView } from "../../src/servers/server.js";
import type { RunOptions } from "../fixtures/commands/command.js";
import { eventually } from "../fixtures/eventually.js";
import { type FaultFleet, faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { FAST_HEALTH, serve } from "../fixtures/fleets/serve.js";
import { fleetAs } from "../fixtures/fleets/user-fleet.js";
import { startToolModel, type ToolModel } from "../fixtures/models/tool-model.js";
import { bwrapProblem } from "../fixtures/programs/bwrap.js";
import { grouped } from "../fixtures/programs/cgroups.js";

const LIMITS = {
  COPILOTFLEET_SANDBOX_MEMORY: "300mb",
  COPILOTFLEET_SANDBOX_PROCESSES: "80",
  COPILOTFLEET_SANDBOX_OPEN_FILES: "128",
  COPILOTFLEET_SANDBOX_CPU: "0.2",
  COPILOTFLEET_SANDBOX_DISK: "1gb",
};

/**
 * Python scripts with which alice's agent tries to use up the machine. Each takes an amount. A script must succeed with
 * the `moderate` amount, so that its failure with the `excess` shows a limit and not a missing program. The amounts are
 * small enough for every machine.
 */
const EXCESSES = {
  memory: { moderate: 10, excess: 400, script: "len(b'x' * (amount << 20))" },
  processes: {
    moderate: 3,
    excess: 120,
    script: `
children = []
try:
  for _ in range(amount):
    pid = os.fork()
    if pid == 0: time.sleep(60); os._exit(0)
    children.append(pid)
finally:
  for pid in children: os.kill(pid, 9); os.waitpid(pid, 0)`,
  },
  openFiles: { moderate: 10, excess: 300, script: "files = [open('/dev/null') for _ in range(amount)]" },
  // The amount is a share of one processor, in percent. If no limit prevents it, the script uses that share and ends.
  cpu: {
    moderate: 1,
    excess: 30,
    script: `
begun = time.monotonic()
children = []
for _ in range(16):
  pid = os.fork()
  if pid == 0:
    while time.monotonic() < begun + 2 and time.process_time() < amount / 800: pass
    os._exit(0)
  children.append(pid)
for pid in children: os.waitpid(pid, 0)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
assert used.ru_utime + used.ru_stime > amount / 100 * (time.monotonic() - begun)`,
  },
} as const;
type Excess = keyof typeof EXCESSES;
const ALL = Object.keys(EXCESSES) as Excess[];

/** Runs each script in alice's agent with both amounts. Returns the names of those that succeeded with the excess. */
async function succeeding(fleet: FaultFleet, run: RunOptions): Promise<string[]> {
  const home = homeOf(fleet.root, serverIdOf("alice"));
  const tries = ALL.flatMap((name) => {
    const { script, moderate, excess } = EXCESSES[name];
    writeFileSync(join(home, `${name}.py`), `import os, resource, sys, time\namount = int(sys.argv[1])\n${script}\n`);
    const run = (amount: number) => `/usr/bin/python3 "$HOME/${name}.py" ${amount}`;
    return [
      `${run(moderate)} && echo "${name} works" >> "$HOME/result"`,
      `${run(excess)} && echo ${name} >> "$HOME/result"`,
    ];
  });
  // The model calls the tool twice. The second call must not run the scripts again.
  const lines = ['[ -e "$HOME/result" ] && exit 0', ': > "$HOME/result"', ...tries, 'echo over >> "$HOME/result"'];
  writeFileSync(join(home, "attack.sh"), lines.join("\n"));
  const call = { command: `bash '${join(home, "attack.sh")}'`, description: "works" };
  await fleet.ok(["send", "of-alice", `!tool bash ${JSON.stringify(call)}`, "--user", "alice"], run);
  // The tool may return before the command ends, so wait for the end of the results.
  const words = await eventually("the attack is over", () => {
    const words = readFileSync(join(home, "result"), "utf8").split("\n").filter(Boolean);
    return words.at(-1) === "over" && words;
  });
  expect(words).toEqual(expect.arrayContaining(ALL.map((name) => `${name} works`)));
  return ALL.filter((name) => words.includes(name));
}

async function toolFleet(model: ToolModel, env: NodeJS.ProcessEnv, as: "root" | "an ordinary user") {
  return await fleetAs(as, { ...model.env, ...env });
}

const ROOT = process.getuid?.() === 0;

it.skipIf(!grouped).each([...(bwrapProblem === undefined ? ["bwrap"] : []), "none"])(
  "with limits and sandbox.mode %s, an agent that exceeds them harms neither its own nor another user's server",
  async (mode) => {
    await using model = await startToolModel();
    const { fleet, run } = await toolFleet(model, { ...LIMITS, COPILOTFLEET_SANDBOX_MODE: mode }, "root");
    for (const user of ["alice", "bob"]) await fleet.create(user, `of-${user}`);
    const attack = succeeding(fleet, run);
    expect(await fleet.send("bob", "of-bob", "hello")).toBe("done");
    expect(await attack).toEqual([]);
    expect(await fleet.send("alice", "of-alice", "hello")).toBe("done");
    const alice = (await fleet.ps()).find(({ user }) => user === "alice");
    expect(alice).toMatchObject({ state: "ready", crashes: 0, sandbox: { limits: { by: "cgroup-v1", notHeld: [] } } });
    expect(alice?.sandbox.not.includes("resources")).toBe(mode === "none");
  },
);

it.skipIf(!ROOT)("without limits, an agent can use as much of the machine as it likes", async () => {
  await using model = await startToolModel();
  const { fleet, run } = await toolFleet(model, {}, "root");
  await fleet.create("alice", "of-alice");
  expect(await succeeding(fleet, run)).toEqual(ALL);
  expect((await fleet.server("alice")).sandbox.limits).toBeUndefined();
});

it.skipIf(!ROOT)(
  "without control groups, an ordinary user's server has limits on memory and files, and ps names the missing limits",
  async () => {
    await using model = await startToolModel();
    const { fleet, run } = await toolFleet(model, LIMITS, "an ordinary user");
    await fleet.ok(["create", "--user", "alice", "--id", "of-alice"], run);
    const { servers } = await fleet.json<{ servers: ServerView[] }>(["ps"], run);
    const [alice] = servers;
    expect(alice?.sandbox.limits).toMatchObject({
      by: "rlimits",
      perProcess: ["memory", "openFiles"],
      notHeld: ["processes", "cpu"],
    });
    expect(alice?.sandbox.not).toContain("resources");
    expect(await succeeding(fleet, run)).toEqual(["processes", "cpu"]);
    expect(readFileSync(alice?.log ?? "", "utf8")).toContain(
      "; limits by rlimits: memory 300mb per process, processes 80 not held, openFiles 128 per process, cpu 0.2 not held, disk 1gb).",
    );
  },
);

const groupsOf = (server: ServerView | undefined) => [...(server?.sandbox.limits?.cgroups ?? [])];

it.skipIf(!grouped)("stop ends a process that only its control groups reveal, and removes the groups", async () => {
  await using model = await startToolModel();
  const { fleet } = await toolFleet(model, LIMITS, "root");
  await fleet.create("alice", "of-alice");
  const call = { command: "env -i setsid sleep 300 >/dev/null 2>&1 < /dev/null & disown", description: "hides" };
  await fleet.send("alice", "of-alice", `!tool bash ${JSON.stringify(call)}`);
  const server = await fleet.server("alice");
  const groups = groupsOf(server);
  expect(groups).toHaveLength(3);
  const hidden = processesInGroup(groups[0] ?? "").filter((pid) => pid !== server.pid);
  expect(hidden.length).toBeGreaterThan(0);
  await fleet.ok(["stop", "--user", "alice"]);
  expect(groups.filter(existsSync)).toEqual([]);
  for (const pid of hidden) expect(system().processes.find(pid)).toBeNull();
});

it.skipIf(!grouped)(
  "after a kill and after a restart, a server has new control groups, and its old groups are removed",
  async () => {
    const fleet = await faultFleet(LIMITS);
    const { server } = await fleet.json<{ server: ServerView }>(["spawn", "--user", "alice"]);
    spawnSync("kill", ["-9", String(server.pid)]);
    await eventually("no process", () => processesInGroup(groupsOf(server)[0] ?? "").length === 0);
    const { server: next } = await fleet.json<{ server: ServerView }>(["spawn", "--user", "alice"]);
    expect(groupsOf(server).filter(existsSync)).toEqual([]);
    expect(groupsOf(next).filter(existsSync)).toHaveLength(3);
    await fleet.ok(["restart", next.id, "--rolling"]);
    const replaced = await fleet.server("alice");
    expect(groupsOf(next).filter(existsSync)).toEqual([]);
    expect(groupsOf(replaced).filter(existsSync)).toHaveLength(3);
    expect(processesInGroup(groupsOf(replaced)[0] ?? "")).toContain(replaced.pid);
  },
);

/** Makes alice's agent run a command. The model calls the tool twice, so the command must be harmless when repeated. */
async function work(fleet: FaultFleet, command: string): Promise<string> {
  return await fleet.send("alice", "of-alice", `!tool bash ${JSON.stringify({ command, description: "works" })}`);
}

it.skipIf(!ROOT)(
  "a user whose files exceed sandbox.disk gets no more turns until there is room, and other users are not affected",
  async () => {
    await using model = await startToolModel();
    const { fleet } = await toolFleet(model, { COPILOTFLEET_SANDBOX_DISK: "20mb" }, "root");
    for (const user of ["alice", "bob"]) await fleet.create(user, `of-${user}`);
    const tooLarge = 'head -c 30000000 /dev/zero > "$HOME/large"';
    expect(await work(fleet, tooLarge)).toBe("done");
    const home = homeOf(fleet.root, serverIdOf("alice"));
    expect(statSync(join(home, "large")).size).toBe(20 * 1024 ** 2);
    rmSync(join(home, "large"));
    const files = 'mkdir -p "$HOME/files" && for i in 1 2 3 4; do head -c 9000000 /dev/zero > "$HOME/files/$i"; done';
    expect(await work(fleet, files)).toBe("done");
    expect(await fleet.refusal(6, ["send", "of-alice", "hello", "--user", "alice"])).toMatchObject({
      code: "FLEET_LIMIT_REACHED",
      message: expect.stringMatching(/^The files of server alice-\w+ take 3\d\.\dmb, and sandbox\.disk allows 20mb\.$/),
    });
    expect(await fleet.send("bob", "of-bob", "hello")).toBe("done");
    await fleet.ok(["list", "--user", "alice"]);
    rmSync(join(home, "files"), { recursive: true });
    expect(await fleet.send("alice", "of-alice", "hello")).toBe("done");
  },
);

it.skipIf(!ROOT)("deleting a session whose files exceed sandbox.disk lets its user run turns again", async () => {
  await using model = await startToolModel();
  const { fleet } = await toolFleet(model, { COPILOTFLEET_SANDBOX_DISK: "20mb" }, "root");
  await fleet.create("alice", "of-alice");
  await fleet.create("alice", "another");
  const files = 'cd "$HOME/session-state/of-alice" && for i in 1 2 3; do head -c 9000000 /dev/zero > "$i"; done';
  await work(fleet, files);
  const refused = await fleet.refusal(6, ["send", "another", "hello", "--user", "alice"]);
  expect(refused.code).toBe("FLEET_LIMIT_REACHED");
  await fleet.ok(["delete", "of-alice", "--yes"]);
  expect(await fleet.send("alice", "another", "hello")).toBe("done");
});

it.skipIf(!ROOT)("serve stops a server that keeps writing beyond sandbox.disk, and no other server", async () => {
  await using model = await startToolModel();
  const { fleet } = await toolFleet(model, { ...FAST_HEALTH, COPILOTFLEET_SANDBOX_DISK: "20mb" }, "root");
  for (const user of ["alice", "bob"]) await fleet.create(user, `of-${user}`);
  const serving = await serve(fleet);
  const bob = await fleet.pidOf("bob");
  const fill =
    'mkdir -p "$HOME/files"; for i in $(seq 60); do head -c 2000000 /dev/zero > "$HOME/files/$i"; sleep 1; done';
  const turn = fleet.run([
    "send",
    "of-alice",
    `!tool bash ${JSON.stringify({ command: fill, description: "fills" })}`,
    "--user",
    "alice",
  ]);
  const { server } = await serving.logged(/^server alice-\w+ takes no new turns: its files take/, { withinMs: 60_000 });
  await serving.logged(/^server alice-\w+ was stopped, because it still wrote: its files take .* allows 20mb$/, {
    withinMs: 60_000,
  });
  expect((await turn).code).not.toBe(0);
  expect(await serving.metric("server_limits_reached_total", { limit: "disk" })).toBe(1);
  expect(await fleet.pidOf("bob")).toBe(bob);
  expect(await fleet.send("bob", "of-bob", "hello")).toBe("done");
  const refused = await fleet.refusal(6, ["send", "of-alice", "hello", "--user", "alice"]);
  expect(refused).toMatchObject({ code: "FLEET_LIMIT_REACHED", message: expect.stringContaining(String(server)) });
});

it.skipIf(!ROOT)("an agent cannot hide files from sandbox.disk in a folder that its account cannot read", async () => {
  await using model = await startToolModel();
  const { fleet, run } = await toolFleet(model, { COPILOTFLEET_SANDBOX_DISK: "20mb" }, "an ordinary user");
  await fleet.ok(["create", "--user", "alice", "--id", "of-alice"], run);
  const call = { command: 'mkdir "$HOME/hidden"; chmod 0 "$HOME/hidden"', description: "hides" };
  await fleet.ok(["send", "of-alice", `!tool bash ${JSON.stringify(call)}`, "--user", "alice"], run);
  expect(await fleet.refusal(6, ["send", "of-alice", "hello", "--user", "alice"], run)).toMatchObject({
    code: "FLEET_LIMIT_REACHED",
    message: expect.stringContaining("an unknown amount, because a folder cannot be read,"),
  });
});

it.skipIf(!grouped)("describe, the metrics and the log of serve show that an agent reached its limits", async () => {
  await using model = await startToolModel();
  const { fleet } = await toolFleet(model, { ...FAST_HEALTH, ...LIMITS }, "root");
  await fleet.create("alice", "of-alice");
  const serving = await serve(fleet);
  const run: RunOptions = {};
  expect(await succeeding(fleet, run)).toEqual([]);
  await serving.logged(/^server alice-\w+ reached sandbox\.memory$/);
  await serving.logged(/^server alice-\w+ reached sandbox\.processes$/);
  expect(await serving.metric("server_limits_reached_total", { limit: "memory" })).toBeGreaterThan(0);
  expect(await serving.metric("server_limits_reached_total", { limit: "processes" })).toBeGreaterThan(0);
  const { reached } = (await fleet.server("alice")).sandbox.limits ?? {};
  expect(Object.values(reached ?? {}).map((count) => count > 0)).toEqual([true, true, true]);
  const shown = await fleet.ok(["describe", (await fleet.server("alice")).id]);
  expect(shown).toMatch(/^ {2}Limits: +memory 300mb, processes 80, .*\(by cgroup-v1\)$/m);
  expect(shown).toMatch(
    /^ {2}Limits reached: +memory \(killed: \d+\), processes \(not started: \d+\), cpu \(waited: .*\)$/m,
  );
});

it.skipIf(!grouped)("if the kernel kills a server at its memory limit, the server's log names the limit", async () => {
  await using model = await startToolModel();
  const { fleet } = await toolFleet(model, { ...LIMITS, COPILOTFLEET_SANDBOX_CPU: "2" }, "root");
  await fleet.create("alice", "of-alice");
  // Each of these processes is smaller than the server, so the kernel kills the server.
  const hogs =
    "for i in $(seq 40); do /usr/bin/python3 -c 'x = b\"x\" * (9 << 20); import time; time.sleep(30)' & done; wait";
  await fleet.run([
    "send",
    "of-alice",
    `!tool bash ${JSON.stringify({ command: hogs, description: "fills" })}`,
    "--user",
    "alice",
  ]);
  const log = (await fleet.server("alice")).log;
  await fleet.ok(["doctor", "--fix"]);
  const text = await eventually(
    "the log names the limit",
    () => /The server ended.*/.exec(readFileSync(log, "utf8"))?.[0],
  );
  expect(text).toMatch(
    /^The server ended, after the kernel had killed \d+ process(es)? of the server at sandbox\.memory \(300mb\)\./,
  );
});
