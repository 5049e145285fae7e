import type { LimitsReport, Resource } from "../../model/sandbox.js";

/** The resources that a control group can limit for a server with everything that it starts. */
export const GROUPED = ["memory", "processes", "cpu"] as const satisfies readonly Resource[];
export type GroupedResource = (typeof GROUPED)[number];

/** The kernel's controller for each resource. */
export const CONTROLLERS = { memory: "memory", processes: "pids", cpu: "cpu" } as const;

export type GroupVersion = Exclude<LimitsReport["by"], "rlimits">;

/** A limit of processor time applies to each period of this length, in microseconds. */
const PERIOD_US = 100_000;

/** The files that may be missing, because a kernel without swap does not have them. */
export const OPTIONAL: ReadonlySet<string> = new Set(["memory.swap.max", "memory.memsw.limit_in_bytes"]);

/** The files that set a limit, each with its text, in the order in which they must be written. */
export function limitFiles(
  version: GroupVersion,
  resource: GroupedResource,
  max: number,
): readonly (readonly [name: string, text: string])[] {
  const quota = Math.round(max * PERIOD_US);
  switch (resource) {
    case "memory":
      return version === "cgroup-v2"
        ? [
            ["memory.max", `${max}`],
            ["memory.swap.max", "0"],
          ]
        : [
            ["memory.limit_in_bytes", `${max}`],
            ["memory.memsw.limit_in_bytes", `${max}`],
          ];
    case "processes":
      return [["pids.max", `${max}`]];
    case "cpu":
      return version === "cgroup-v2"
        ? [["cpu.max", `${quota} ${PERIOD_US}`]]
        : [
            ["cpu.cfs_period_us", `${PERIOD_US}`],
            ["cpu.cfs_quota_us", `${quota}`],
          ];
  }
}

/**
 * The file in which the kernel counts how often a limit was reached, and the word before the count. For memory, the
 * kernel counts the processes that it killed; for processes, those that it refused to start; for cpu, the periods of a
 * tenth of a second in which it made processes wait.
 */
export function countOf(version: GroupVersion, resource: GroupedResource): readonly [file: string, word: string] {
  switch (resource) {
    case "memory":
      return [version === "cgroup-v2" ? "memory.events" : "memory.oom_control", "oom_kill"];
    case "processes":
      return ["pids.events", "max"];
    case "cpu":
      return ["cpu.stat", "nr_throttled"];
  }
}
