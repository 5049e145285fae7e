import { randomBytes } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { FleetError, quote, systemCode } from "../base/errors.js";
import { type LimitsReached, type LimitsReport, RESOURCES, type Resource } from "../base/sandbox.js";
import { type ControlGroup, system } from "../base/system/system.js";
import { shellQuote } from "../base/values/text.js";
import type { Config } from "../config/schema.js";
import type { Command } from "./sandbox.js";

/** The limits of one start of a server. */
export interface ChosenLimits {
  report: LimitsReport;
  groups: readonly GroupLimit[];
  rlimits: readonly Rlimit[];
}

/** A resource limit that each process of the server gets, both as its soft and as its hard limit. */
interface Rlimit {
  name: keyof typeof RLIMITS;
  max: number;
}

/**
 * For each resource limit: the kernel's number (asm-generic/resource.h), and the option and the unit of a shell's
 * `ulimit`.
 */
const RLIMITS = {
  fileSize: { number: 1, option: "-f", unit: 512 },
  data: { number: 2, option: "-d", unit: 1024 },
  openFiles: { number: 7, option: "-n", unit: 1 },
} as const;

/** Chooses how to enforce the limits of a server. Null if the configuration sets none. */
export function chooseLimits(
  settings: Config["sandbox"]["limits"],
  serverId: string,
  findBases: () => ReadonlyMap<GroupedResource, GroupBase> = groupBases,
): ChosenLimits | null {
  if (RESOURCES.every((resource) => settings[resource] === null)) return null;
  const { memory, openFiles, disk } = settings;
  const bases = GROUPED.some((resource) => settings[resource] !== null) ? findBases() : new Map();
  const name = `${PREFIX}${serverId}.${randomBytes(6).toString("hex")}`;
  const groups = GROUPED.flatMap((resource): GroupLimit[] => {
    const [max, base] = [settings[resource], bases.get(resource)];
    return max === null || base === undefined ? [] : [{ folder: join(base.folder, name), by: base.by, resource, max }];
  });
  const isGrouped = (resource: Resource) => groups.some((group) => group.resource === resource);
  const rlimits: Rlimit[] = [
    ...(memory === null || isGrouped("memory") ? [] : [{ name: "data", max: memory } as const]),
    ...(openFiles === null ? [] : [{ name: "openFiles", max: openFiles } as const]),
    // The fleet measures the size of the whole home only from time to time. The kernel limits only single files, but
    // does so at every write.
    ...(disk === null ? [] : [{ name: "fileSize", max: disk } as const]),
  ];
  const perProcess = (["memory", "openFiles"] as const).filter((part) => settings[part] !== null && !isGrouped(part));
  // Resource limits cannot replace control groups for these two. They cannot limit the rate of processor time, and they
  // count the processes of all servers of the account together, so one user could use up the limit for all others.
  const notHeld = (["processes", "cpu"] as const).filter((part) => settings[part] !== null && !isGrouped(part));
  const by = groups[0]?.by ?? "rlimits";
  const cgroups = [...new Set(groups.map(({ folder }) => folder))];
  return { report: { by, ...settings, perProcess, notHeld, cgroups }, groups, rlimits };
}

/** The options with which our launcher sets limits. */
export function launcherOptions({ report, rlimits }: ChosenLimits): string[] {
  return [
    ...report.cgroups.flatMap((folder) => ["--cgroup", folder]),
    ...rlimits.flatMap(({ name, max }) => ["--limit", `${RLIMITS[name].number}=${max}`]),
  ];
}

/**
 * The option with which our launcher marks all processes of a launch. Since Linux 2.4.25, the kernel ignores the limit
 * on file locks, number 10, but all descendants inherit it. The launcher's filter keeps them from changing it.
 */
export function markOption(mark: number): string[] {
  return ["--limit", `10=${mark}`];
}

/**
 * Wraps a command in a shell that applies the limits, for a command that does not begin with our launcher. The shell
 * joins the groups, and then the program replaces the shell.
 */
export function underShell({ report, rlimits }: ChosenLimits, command: Command): Command {
  const script = [
    ...report.cgroups.map((folder) => `echo 0 > ${shellQuote(join(folder, "cgroup.procs"))} || exit 126`),
    // A shell refuses a limit only if it is above the current limit. So if `ulimit` fails, a lower limit is already in
    // force.
    ...rlimits.map(({ name, max }) => {
      const { option, unit } = RLIMITS[name];
      return `ulimit ${option} ${Math.max(1, Math.floor(max / unit))} 2>/dev/null`;
    }),
    'exec "$@"',
  ];
  return ["/bin/sh", "-c", script.join("\n"), "sh", ...command];
}

/*
 * A control group limits a set of processes together. The fleet makes a group for each start of a server with limits.
 * The server joins the group before its program runs, so everything that the server starts is in the group, too.
 * Sources: the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
 */

/** A folder in which this process can make groups that limit a resource. */
interface GroupBase {
  by: GroupVersion;
  folder: string;
}

const PREFIX = "copilotfleet-";
/**
 * Version 2 allows no processes in a group whose subgroups have limits. So the fleet's own process moves into this
 * subgroup.
 */
const OWN_GROUP = `${PREFIX}supervisor`;

let found: ReadonlyMap<GroupedResource, GroupBase> | undefined;

/**
 * Returns, for each resource that this process can limit, the folder in which it can make groups. Makes a trial group
 * there, once in each process, because only a trial shows what the kernel allows.
 */
function groupBases(): ReadonlyMap<GroupedResource, GroupBase> {
  found ??= findBases(system().processes.controlGroups(), process.getuid?.() === 0);
  return found;
}

/**
 * Tries the folders in which this process might make groups. Returns the first usable folder for each resource.
 *
 * @param own the control groups of this process
 * @param isRoot whether this process may make groups at the top of version 2's hierarchy, beside the system's own
 * groups
 */
export function findBases(own: readonly ControlGroup[], isRoot: boolean): Map<GroupedResource, GroupBase> {
  const bases = new Map<GroupedResource, GroupBase>();
  for (const { version, folder, mountPoint, controllers } of own) {
    const folders =
      version === 1
        ? [folder]
        : [basename(folder) === OWN_GROUP ? dirname(folder) : folder, ...(isRoot ? [mountPoint] : [])];
    for (const base of folders) {
      const usable = version === 1 ? controllers : delegated(base);
      const held = GROUPED.filter((resource) => usable.includes(CONTROLLERS[resource]) && !bases.has(resource));
      if (held.length === 0 || !canMakeGroup(base)) continue;
      for (const resource of held) bases.set(resource, { by: `cgroup-v${version}`, folder: base });
      break;
    }
  }
  return bases;
}

/**
 * Enables our controllers for the subgroups of a group of version 2, as far as the kernel allows it. If this process is
 * alone in the group, first moves it into a subgroup. Returns the controllers that are enabled afterwards.
 */
function delegated(folder: string): string[] {
  const words = (file: string) => (read(join(folder, file)) ?? "").trim().split(/\s+/);
  const ours = words("cgroup.controllers").filter((name) => Object.values<string>(CONTROLLERS).includes(name));
  const missing = () => ours.filter((name) => !words("cgroup.subtree_control").includes(name));
  const enable = () => {
    for (const name of missing()) write(join(folder, "cgroup.subtree_control"), `+${name}`);
  };
  enable();
  if (missing().length > 0 && words("cgroup.procs").join() === `${process.pid}`) {
    const leaf = join(folder, OWN_GROUP);
    if (make(leaf) === null && write(join(leaf, "cgroup.procs"), `${process.pid}`) === null) enable();
  }
  const left = missing();
  return ours.filter((name) => !left.includes(name));
}

function canMakeGroup(base: string): boolean {
  const trial = join(base, `${PREFIX}try-${process.pid}`);
  if (make(trial) !== null) return false;
  rmdirSync(trial);
  return true;
}

/** A limit for a group that the fleet will make. A group may have several limits. */
interface GroupLimit {
  folder: string;
  by: GroupVersion;
  resource: GroupedResource;
  max: number;
}

/**
 * Makes the groups and sets their limits.
 *
 * @throws FLEET_SANDBOX_UNUSABLE if the kernel refuses a group or a limit, even though the trial in {@link findBases}
 * worked
 */
export function makeGroups(limits: readonly GroupLimit[]): void {
  for (const { folder, by, resource, max } of limits) {
    const failures = [
      make(folder),
      ...Object.entries(FILES[by][resource].set(max)).map(([name, content]) => {
        const failure = write(join(folder, name), `${content}`);
        return failure === "ENOENT" && OPTIONAL.has(name) ? null : failure;
      }),
    ];
    const failure = failures.find((code) => code !== null);
    if (failure === undefined) continue;
    const problem = `The control group ${quote(folder)} for sandbox.${resource} cannot be made: ${failure}.`;
    throw new FleetError("FLEET_SANDBOX_UNUSABLE", problem, { suggestions: ["copilotfleet doctor"] });
  }
}

/** The processes in a group and in the groups below it. Empty if the group does not exist. */
export function processesInGroup(folder: string): number[] {
  const own = (read(join(folder, "cgroup.procs")) ?? "").split("\n").filter((line) => line !== "");
  return [...own.map(Number), ...groupsIn(folder).flatMap(processesInGroup)];
}

/** Removes a group that has no processes, and the groups below it. @returns whether the group no longer exists */
export function removeGroup(folder: string): boolean {
  for (const group of groupsIn(folder)) removeGroup(group);
  return [null, "ENOENT"].includes(attempt(() => rmdirSync(folder)));
}

/**
 * Returns the paths at which this process sees a server's control groups. The paths in the report may differ, because
 * the process that made the groups may have its own cgroup namespace, like a service with
 * `ProtectControlGroups=private`. If this process sees none of these groups, returns the paths in the report.
 */
export function groupsOf({ cgroups }: LimitsReport, pid: number | null): string[] {
  const ours = cgroups.filter(isServerGroup);
  const names = new Set(ours.map((folder) => basename(folder)));
  const own = pid === null ? [] : system().processes.controlGroups(pid);
  const seen = own.map(({ folder }) => folder).filter((folder) => names.has(basename(folder)));
  return seen.length > 0 ? seen : ours;
}

/**
 * How often a server has reached its limits since its start. A limit without a control group counts as never reached.
 *
 * @param pid the server's process; null if it has ended
 */
export function limitsReached(limits: LimitsReport, pid: number | null): LimitsReached {
  const { by } = limits;
  const reached = { memory: 0, processes: 0, cpu: 0 };
  if (by === "rlimits") return reached;
  const groups = groupsOf(limits, pid);
  for (const resource of GROUPED) {
    const [file, word] = FILES[by][resource].counts;
    for (const folder of groups) {
      const line = new RegExp(`^${word} (\\d+)$`, "m").exec(read(join(folder, file)) ?? "");
      reached[resource] += Number(line?.[1] ?? 0);
    }
  }
  return reached;
}

/**
 * Whether a path from a record has the name of a group that a fleet makes for a server. The fleet kills all processes
 * in such a group, so a wrong path in a record would kill unrelated programs.
 */
function isServerGroup(folder: string): boolean {
  const name = basename(folder);
  return name.startsWith(PREFIX) && name !== OWN_GROUP;
}

function groupsIn(folder: string): string[] {
  const entries = orNull(() => readdirSync(folder, { withFileTypes: true })) ?? [];
  return entries.filter((entry) => entry.isDirectory()).map(({ name }) => join(folder, name));
}

const read = (path: string) => orNull(() => readFileSync(path, "utf8"));

/** The result of `work`; null if the system refuses it. */
function orNull<T>(work: () => T): T | null {
  let result: T | null = null;
  attempt(() => (result = work()));
  return result;
}

/** @returns the code of the system error; null if there was none */
function attempt(work: () => void): string | null {
  try {
    work();
    return null;
  } catch (error) {
    const code = systemCode(error);
    if (code === undefined) throw error;
    return code;
  }
}

// Use `r+`, which fails if the file is missing: only the kernel makes these files, and some kernels lack the optional
// ones.
const write = (path: string, text: string) => attempt(() => writeFileSync(path, text, { flag: "r+" }));

function make(folder: string): string | null {
  const code = attempt(() => mkdirSync(folder));
  return code === "EEXIST" ? null : code;
}

/** The resources that a control group can limit for a server with everything that it starts. */
export const GROUPED = ["memory", "processes", "cpu"] as const satisfies readonly Resource[];
type GroupedResource = (typeof GROUPED)[number];

/** The kernel's controller for each resource. */
const CONTROLLERS = { memory: "memory", processes: "pids", cpu: "cpu" } as const;

type GroupVersion = Exclude<LimitsReport["by"], "rlimits">;

/** A limit of processor time applies to each period of this length, in microseconds. */
const PERIOD_US = 100_000;

/** The files that may be missing, because a kernel without swap does not have them. */
const OPTIONAL: ReadonlySet<string> = new Set(["memory.swap.max", "memory.memsw.limit_in_bytes"]);

const quotaOf = (processors: number) => Math.round(processors * PERIOD_US);

/**
 * For each version and resource: the files that set a limit, each with its content, in the order in which they must be
 * written; then the file in which the kernel counts how often the limit was reached, and the word before the count. For
 * memory, the kernel counts the processes that it killed; for processes, those that it refused to start; for cpu, the
 * periods of a tenth of a second in which it made processes wait.
 */
const FILES: Readonly<Record<GroupVersion, Readonly<Record<GroupedResource, GroupFiles>>>> = {
  "cgroup-v2": {
    memory: { set: (max) => ({ "memory.max": max, "memory.swap.max": 0 }), counts: ["memory.events", "oom_kill"] },
    processes: { set: (max) => ({ "pids.max": max }), counts: ["pids.events", "max"] },
    cpu: { set: (max) => ({ "cpu.max": `${quotaOf(max)} ${PERIOD_US}` }), counts: ["cpu.stat", "nr_throttled"] },
  },
  "cgroup-v1": {
    memory: {
      set: (max) => ({ "memory.limit_in_bytes": max, "memory.memsw.limit_in_bytes": max }),
      counts: ["memory.oom_control", "oom_kill"],
    },
    processes: { set: (max) => ({ "pids.max": max }), counts: ["pids.events", "max"] },
    cpu: {
      set: (max) => ({ "cpu.cfs_period_us": PERIOD_US, "cpu.cfs_quota_us": quotaOf(max) }),
      counts: ["cpu.stat", "nr_throttled"],
    },
  },
};

interface GroupFiles {
  set: (max: number) => Readonly<Record<string, number | string>>;
  counts: readonly [file: string, word: string];
}
