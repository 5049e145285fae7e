import { mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { FleetError, quote, systemCode } from "../../errors.js";
import type { LimitsReached, LimitsReport } from "../../model/sandbox.js";
import { type ControlGroup, system } from "../../system/system.js";
import {
  CONTROLLERS,
  countOf,
  GROUPED,
  type GroupedResource,
  type GroupVersion,
  limitFiles,
  OPTIONAL,
} from "./group-files.js";

/*
 * A control group limits a set of processes together. The fleet makes a group for each start of a server with limits.
 * The server joins the group before its program runs, so everything that the server starts is in the group, too.
 * Sources: the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
 */

/** A folder in which this process can make groups that limit a resource. */
export interface GroupBase {
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
export function groupBases(): ReadonlyMap<GroupedResource, GroupBase> {
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
export interface GroupLimit {
  folder: string;
  by: GroupVersion;
  resource: GroupedResource;
  max: number;
}

/** @param name the name of the group, which differs for each start of a server */
export function groupFolder({ folder }: GroupBase, name: string): string {
  return join(folder, `${PREFIX}${name}`);
}

/**
 * Makes the groups and sets their limits.
 *
 * @throws FLEET_SANDBOX_UNUSABLE if the kernel refuses a group or a limit, even though the trial in {@link findBases}
 * worked
 */
export function makeGroups(limits: readonly GroupLimit[]): void {
  for (const { folder, by, resource, max } of limits) {
    const files = limitFiles(by, resource, max);
    const failures = [
      make(folder),
      ...files.map(([name, text]) => {
        const failure = write(join(folder, name), text);
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
  try {
    rmdirSync(folder);
    return true;
  } catch (error) {
    return systemCode(error) === "ENOENT";
  }
}

/**
 * Returns the paths at which this process sees a server's control groups. The paths in the report may differ, because
 * the process that made the groups may have its own cgroup namespace, like a service with
 * `ProtectControlGroups=private`. If this process sees none of these groups, returns the paths in the report.
 */
export function groupsOf({ cgroups }: LimitsReport, pid: number | null): string[] {
  const ours = cgroups.filter(isServerGroup);
  const names = new Set(ours.map((folder) => basename(folder)));
  const own =
    pid === null
      ? []
      : system()
          .processes.controlGroups(pid)
          .map(({ folder }) => folder);
  const seen = own.filter((folder) => names.has(basename(folder)));
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
    const [file, word] = countOf(by, resource);
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
  try {
    const entries = readdirSync(folder, { withFileTypes: true });
    return entries.filter((entry) => entry.isDirectory()).map(({ name }) => join(folder, name));
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    return [];
  }
}

function read(path: string): string | null {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    return null;
  }
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
