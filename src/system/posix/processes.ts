import { existsSync } from "node:fs";
import { systemCode } from "../../errors.js";
import type { ProcessTable, ProcessVariables, SeenProcess } from "../system.js";
import { connectedPorts, listensOn, writers } from "./open-files.js";
import { lines } from "./run.js";

/** How many times we read the environments before we leave out processes that execute one program after another. */
const LOOKS = 3;

interface Row extends SeenProcess {
  group: number;
  /** The command line, perhaps with the environment. Empty if neither was asked for. */
  text: string;
}

/**
 * Runs `ps` and `lsof`, with options that macOS and Linux (procps) have. Their answers differ from those of `/proc`:
 *
 * - A start time has whole seconds, so a PID that is reused within a second goes unnoticed.
 * - There is one namespace. A zombie does not show how it ended. On Linux, a process counts as gone once its first thread
 *   has ended.
 * - The leader's group, and all descendants of its members, count as the members of a process session.
 * - `ps` prints an environment as one line, so a value ends before the next word that looks like a variable. On macOS,
 *   Apple's own programs, such as `/bin/sh`, show no environment.
 * - The memory includes pages that other processes share.
 */
export function posixProcesses(platform: NodeJS.Platform): ProcessTable {
  /** With "command", each row has the command line. With "environment", the environment follows the command line. */
  function list(which: readonly string[], add: "nothing" | "command" | "environment" = "nothing"): Row[] {
    const columns = ["pid", "ppid", "pgid", "state", "lstart", ...(add === "nothing" ? [] : ["args"])];
    const environment = add === "environment" ? [platform === "darwin" ? "-E" : "e"] : [];
    // `ps` takes the whole rest of an argument as the header of a column, so each column needs its own `-o`.
    const args = ["-ww", ...environment, ...which, ...columns.flatMap((column) => ["-o", `${column}=`])];
    return lines(platform, "ps", args).flatMap(rowOf);
  }

  function withEnvironment(names: readonly string[]): ProcessVariables[] {
    for (let look = 1; ; look++) {
      // `ps` appends the environment to the command line. So we need the command line alone, too. List the environments
      // first. Each of these processes that still runs is then in the second list.
      const before = list(["-A"], "environment");
      const commands = new Map(list(["-A"], "command").map((row) => [row.pid, row]));
      const same = before.filter(({ pid, started }) => pid !== process.pid && commands.get(pid)?.started === started);
      const known = same.filter(({ pid, text }) => text.startsWith(commands.get(pid)?.text ?? ""));
      // The other processes executed another program between the two lists, so look again.
      if (known.length < same.length && look < LOOKS) continue;
      return known.map(({ text, ...row }) => ({
        ...seenOf(row),
        variables: variablesIn(text.slice(commands.get(row.pid)?.text.length), names),
      }));
    }
  }

  return {
    namespace: () => "none",

    find(pid) {
      const [row] = exists(pid) ? list(["-p", String(pid)]) : [];
      return row === undefined ? null : seenOf(row);
    },

    innerPid: () => null,

    exitOfZombie: () => null,

    inheritedDescriptors: () => [],

    allowsNamespaces: () => false,

    inSession(leader) {
      const all = list(["-A"]);
      const members = new Set([leader]);
      for (let before = 0; before < members.size; ) {
        before = members.size;
        for (const { pid, parent, group } of all) if (group === leader || members.has(parent)) members.add(pid);
      }
      return all.filter(({ pid }) => members.has(pid) && pid !== process.pid).map(seenOf);
    },

    withVariable: (name, value) => withEnvironment([name]).filter(({ variables }) => variables[name] === value),

    withEnvironment,

    withLockLimit: () => [],
    endFirst: () => undefined,
    hideVariables: () => false,

    writersOf(path) {
      if (!existsSync(path)) return [];
      const pids = new Set(writers(platform, path));
      return pids.size === 0
        ? []
        : list(["-A"])
            .filter(({ pid }) => pids.has(pid) && pid !== process.pid)
            .map(seenOf);
    },

    listensOn: (pid, port) => listensOn(platform, pid, port),

    connectedPorts: (ports, except) => connectedPorts(platform, ports, except),

    controlGroups: () => [],
    privateMemoryBytes(pid) {
      const [row = "Z"] = exists(pid) ? lines(platform, "ps", ["-o", "state=", "-o", "rss=", "-p", String(pid)]) : [];
      const [state = "Z", kilobytes] = row.trim().split(/ +/);
      return isGone(state) ? null : Number(kilobytes) * 1024;
    },
  };
}

/**
 * Whether the process exists. Asks the kernel and does not run `ps`, because most questions are about processes that have
 * ended.
 */
function exists(pid: number): boolean {
  if (!Number.isSafeInteger(pid) || pid <= 0) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return systemCode(error) === "EPERM"; // it exists, and belongs to another user
  }
}

/** Whether `ps` shows a zombie, or a process that is just ending. On macOS, the state may have more letters. */
function isGone(state: string): boolean {
  return state.startsWith("Z") || state.startsWith("X");
}

/** The row of a line. Empty for a process that has ended or is just ending. */
function rowOf(line: string): Row[] {
  const found = /^ *(\d+) +(\d+) +(\d+) +(\S+) +(\w+ +\w+ +\d+ +[\d:]+ +\d+) ?(.*)$/.exec(line);
  if (found === null) throw new Error(`ps printed a line of an unknown form: ${JSON.stringify(line)}`);
  const [, pid = "", parent = "", group = "", state = "", started = "", text = ""] = found;
  if (isGone(state)) return [];
  return [
    { pid: Number(pid), parent: Number(parent), group: Number(group), started: started.replace(/ +/g, " "), text },
  ];
}

function seenOf({ pid, parent, started }: SeenProcess): SeenProcess {
  return { pid, parent, started };
}

/** @param text ` NAME=value NAME=value`, as `ps` prints it */
function variablesIn(text: string, names: readonly string[]): Record<string, string> {
  const variables: Record<string, string> = {};
  for (const name of names) {
    const value = new RegExp(`(?:^| )${name}=(.*?)(?= [A-Za-z_][A-Za-z_0-9]*=|$)`).exec(text)?.[1];
    if (value !== undefined) variables[name] = value;
  }
  return variables;
}
