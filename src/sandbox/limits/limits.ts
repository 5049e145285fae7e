import { randomBytes } from "node:crypto";
import { join } from "node:path";
import type { Config } from "../../config/schema.js";
import { shellQuote } from "../../config/values/text.js";
import { type LimitsReport, RESOURCES, type Resource } from "../../model/sandbox.js";
import type { Command } from "../sandbox.js";
import { type GroupBase, type GroupLimit, groupBases, groupFolder } from "./cgroups.js";
import { GROUPED, type GroupedResource } from "./group-files.js";

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
  const name = `${serverId}.${randomBytes(6).toString("hex")}`;
  const groups = GROUPED.flatMap((resource): GroupLimit[] => {
    const [max, base] = [settings[resource], bases.get(resource)];
    return max === null || base === undefined ? [] : [{ folder: groupFolder(base, name), by: base.by, resource, max }];
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
 * The option with which our launcher marks all processes of a launch. Since Linux 2.4.25, the kernel ignores the limit on file
 * locks, number 10, but all descendants inherit it. The launcher's filter keeps them from changing it.
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
