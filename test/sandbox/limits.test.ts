import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { limitsResources, limitTexts } from "../../src/base/sandbox.js";
import { type ControlGroup, system } from "../../src/base/system/system.js";
import type { Config } from "../../src/config/schema.js";
import { tryLauncher } from "../../src/sandbox/landlock.js";
import {
  chooseLimits,
  findBases,
  launcherOptions,
  makeGroups,
  processesInGroup,
  removeGroup,
  underShell,
} from "../../src/sandbox/limits.js";
import { bundleFixture } from "../fixtures/bundle.js";
import { grouped } from "../fixtures/programs/cgroups.js";

const groupPrinter = bundleFixture("group-printer");

type Settings = Config["sandbox"]["limits"];
const ALL: Settings = { memory: 256 * 1024 ** 2, processes: 64, openFiles: 128, cpu: 0.5, disk: 1024 ** 3 };

/**
 * Makes a folder that looks like a hierarchy of control groups of version 2, in which this process is in the group
 * `unit`.
 */
function fakeV2(files: Record<string, string>): ControlGroup {
  const mountPoint = mkdtempSync(join(tmpdir(), "copilotfleet-cgroup-"));
  onTestFinished(() => rmSync(mountPoint, { recursive: true }));
  const folder = join(mountPoint, "unit");
  mkdirSync(folder);
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
  return { version: 2, controllers: [], mountPoint, folder };
}

const bases = (own: ControlGroup[], isRoot = false) => Object.fromEntries(findBases(own, isRoot));

it("without control groups, memory and openFiles apply per process, and processes and cpu are not held", () => {
  const chosen = chooseLimits(ALL, "s", () => new Map());
  expect(chosen?.report).toEqual({
    ...ALL,
    by: "rlimits",
    perProcess: ["memory", "openFiles"],
    notHeld: ["processes", "cpu"],
    cgroups: [],
  });
  expect(chosen?.report && limitTexts(chosen.report)).toEqual([
    "memory 256mb per process",
    "processes 64 not held",
    "openFiles 128 per process",
    "cpu 0.5 not held",
    "disk 1gb",
  ]);
  expect(chosen?.report && limitsResources(chosen.report)).toBe(false);
});

it("with control groups of version 2, chooseLimits enforces only the limits with delegated controllers", () => {
  const own = fakeV2({
    "cgroup.controllers": "memory pids",
    "cgroup.subtree_control": "memory pids",
    "cgroup.procs": "1",
  });
  const found = findBases([own], false);
  expect(Object.keys(Object.fromEntries(found))).toEqual(["memory", "processes"]);
  expect(chooseLimits(ALL, "s", () => found)?.report).toMatchObject({
    by: "cgroup-v2",
    perProcess: ["openFiles"],
    notHeld: ["cpu"],
    cgroups: [expect.stringMatching(/\/unit\/copilotfleet-s\.[0-9a-f]{12}$/)],
  });
});

it("a process that is alone in its group of version 2 moves into a subgroup, and enables the controllers", () => {
  const files = { "cgroup.controllers": "pids", "cgroup.subtree_control": "", "cgroup.procs": `${process.pid}\n` };
  const own = fakeV2(files);
  mkdirSync(join(own.folder, "copilotfleet-supervisor"));
  const moved = join(own.folder, "copilotfleet-supervisor", "cgroup.procs");
  writeFileSync(moved, "");
  findBases([own], false);
  expect(readFileSync(moved, "utf8")).toBe(`${process.pid}`);
  expect(readFileSync(join(own.folder, "cgroup.subtree_control"), "utf8")).toBe("+pids");
});

it("a process does not leave its group of version 2 while other processes are in it", () => {
  const own = fakeV2({
    "cgroup.controllers": "pids",
    "cgroup.subtree_control": "",
    "cgroup.procs": `1\n${process.pid}\n`,
  });
  expect(bases([own])).toEqual({});
  expect(existsSync(join(own.folder, "copilotfleet-supervisor"))).toBe(false);
});

it("makeGroups writes the limits to the files of a group of version 2", () => {
  const own = fakeV2({
    "cgroup.controllers": "cpu memory pids",
    "cgroup.subtree_control": "cpu memory pids",
    "cgroup.procs": "",
  });
  const chosen = chooseLimits(ALL, "s", () => findBases([own], false));
  const folder = chosen?.report.cgroups[0] ?? "";
  mkdirSync(folder);
  for (const name of ["memory.max", "memory.swap.max", "pids.max", "cpu.max"]) writeFileSync(join(folder, name), "");
  makeGroups(chosen?.groups ?? []);
  const text = (name: string) => readFileSync(join(folder, name), "utf8");
  expect([text("memory.max"), text("memory.swap.max"), text("pids.max"), text("cpu.max")]).toEqual([
    "268435456",
    "0",
    "64",
    "50000 100000",
  ]);
});

it.skipIf(!grouped)(
  "root makes control groups of version 1 below its own groups, and the kernel accepts all limits",
  () => {
    const chosen = chooseLimits(ALL, "s");
    expect(chosen?.report).toMatchObject({ by: "cgroup-v1", perProcess: ["openFiles"], notHeld: [] });
    expect(chosen?.report.cgroups).toHaveLength(3);
    expect(chosen?.report && limitsResources(chosen.report)).toBe(true);
    makeGroups(chosen?.groups ?? []);
    const [memory = "", pids = "", cpu = ""] = chosen?.report.cgroups ?? [];
    expect(readFileSync(join(memory, "memory.limit_in_bytes"), "utf8")).toBe("268435456\n");
    expect(readFileSync(join(pids, "pids.max"), "utf8")).toBe("64\n");
    expect(readFileSync(join(cpu, "cpu.cfs_quota_us"), "utf8")).toBe("50000\n");
    for (const folder of [memory, pids, cpu]) expect(removeGroup(folder)).toBe(true);
    expect(removeGroup(memory)).toBe(true);
  },
);

it.skipIf(!grouped).each(["the launcher", "a shell"])(
  "a program under %s runs in its control groups and with its resource limits from the start",
  async (by) => {
    const chosen = chooseLimits(ALL, "s");
    if (chosen === null) throw new Error("no limits");
    makeGroups(chosen.groups);
    const { cgroups } = chosen.report;
    onTestFinished(() => void cgroups.map(removeGroup));
    const command = ["/bin/sh", "-c", "cat /proc/self/cgroup; ulimit -n; ulimit -f"] as const;
    const launcher = await tryLauncher();
    if ("why" in launcher) throw new Error(launcher.why);
    const [program, ...args] = launcher.wrap(command, {
      read: ["/"],
      write: [],
      devices: [],
      named: [],
      temporary: null,
    });
    const [first, ...rest] =
      by === "a shell" ? underShell(chosen, command) : [program, ...launcherOptions(chosen), ...args];
    const { stdout, stderr } = spawnSync(first, rest, { encoding: "utf8" });
    expect(stderr).toBe("");
    for (const folder of cgroups) expect(stdout).toContain(folder.slice(folder.lastIndexOf("/copilotfleet-")));
    expect(stdout).toMatch(/\n128\n2097152\n$/);
    expect(cgroups.flatMap(processesInGroup)).toEqual([]);
  },
);

it("a shell from underShell that cannot join its control group does not run the program", () => {
  const chosen = chooseLimits(ALL, "s", () => new Map([["cpu", { by: "cgroup-v1", folder: "/nowhere" }]]));
  if (chosen === null) throw new Error("no limits");
  const [program, ...args] = underShell(chosen, ["/bin/echo", "ran"]);
  expect(spawnSync(program, args, { encoding: "utf8" })).toMatchObject({ status: 126, stdout: "" });
});

it.skipIf(!grouped)(
  "a process that left the root group of its cgroup namespace does not mistake another folder for its group",
  () => {
    const pids = system()
      .processes.controlGroups()
      .find(({ controllers }) => controllers.includes("pids"));
    const [top, other] = ["top", "other"].map((name) => join(pids?.folder ?? "", `fleet-${name}-${process.pid}`));
    for (const group of [top, other]) {
      mkdirSync(group ?? "");
      onTestFinished(() => rmdirSync(group ?? ""));
    }
    const inside = `mount -t cgroup -o pids none ${pids?.mountPoint} && exec ${process.execPath} ${groupPrinter}`;
    const script = `echo 0 > ${top}/cgroup.procs && exec unshare --cgroup --mount sh -c '
    echo 0 > ${other}/cgroup.procs && ${inside}'`;
    const found = JSON.parse(execFileSync("sh", ["-c", script], { encoding: "utf8" })) as ControlGroup[];
    expect(found.length).toBeGreaterThan(0);
    for (const { folder, mountPoint } of found) expect(`${folder}/`.startsWith(`${mountPoint}/`), folder).toBe(true);
  },
);
