import { readFileSync } from "node:fs";
import type { ProcessIdentity } from "../../model/process.js";
import { identify, pids, readStat, seen } from "./process-table.js";

/** Every server has this variable in its environment. It names the launch that started the server. */
export const LAUNCH_VARIABLE = "COPILOTFLEET_LAUNCH_ID";

/** Names the state folder of the fleet that started a process. With it, we find processes that no registry knows. */
export const FLEET_VARIABLE = "COPILOTFLEET_OWNER";

/** The variable in which the runtime gives tools and MCP servers the session's id (seen with 1.0.85 and 1.0.102). */
const SESSION_VARIABLE = "COPILOT_AGENT_SESSION_ID";

/** The server and everything that it started. Looks at every process of this user, so do not call it often. */
export function processesOfLaunch(launchId: string): ProcessIdentity[] {
  const needle = Buffer.from(`${LAUNCH_VARIABLE}=${launchId}\0`);
  return pids().flatMap((pid) => {
    const environment = seen(() => readFileSync(`/proc/${pid}/environ`)); // null: the process has ended, or belongs to another user
    return environment?.includes(needle) === true ? (identify(pid) ?? []) : [];
  });
}

export interface LaunchedProcess {
  identity: ProcessIdentity;
  /** The session that the process names in its environment, or its nearest ancestor in the launch. Null when none does. */
  sessionId: string | null;
}

interface Environment {
  parent: number;
  launchId: string | undefined;
  fleet: string | undefined;
  sessionId: string | undefined;
}

/** The live processes of this fleet, by launch id. Includes those that no longer have the variables above. */
export function processesByLaunch(stateRoot: string): Map<string, LaunchedProcess[]> {
  const known = new Map<number, Environment>();
  for (const pid of pids()) {
    const environment = readEnvironment(pid);
    if (environment !== null) known.set(pid, environment);
  }
  const launches = new Map<string, LaunchedProcess[]>();
  for (const pid of known.keys()) {
    const { launch, sessionId } = attribute(pid, known);
    if (launch?.launchId === undefined || launch.fleet !== stateRoot) continue;
    const identity = identify(pid);
    if (identity === null) continue;
    launches.set(launch.launchId, [...(launches.get(launch.launchId) ?? []), { identity, sessionId }]);
  }
  return launches;
}

function readEnvironment(pid: number): Environment | null {
  const stat = readStat(pid);
  if (stat === null) return null;
  const text = seen(() => readFileSync(`/proc/${pid}/environ`, "utf8")) ?? ""; // the process has ended, or belongs to another user
  const entries = text.split("\0");
  const read = (name: string) => entries.find((entry) => entry.startsWith(`${name}=`))?.slice(name.length + 1);
  return {
    parent: stat.parent,
    launchId: read(LAUNCH_VARIABLE),
    fleet: read(FLEET_VARIABLE),
    sessionId: read(SESSION_VARIABLE),
  };
}

/**
 * Finds the launch and the session of a process: those in its environment, or in that of its nearest ancestor. Does not look
 * beyond the launch, because the fleet itself may run inside a session of another fleet or of any Copilot CLI.
 */
function attribute(
  pid: number,
  known: ReadonlyMap<number, Environment>,
): { launch: Environment | undefined; sessionId: string | null } {
  let launch: Environment | undefined;
  let sessionId: string | undefined;
  let at = known.get(pid);
  // While we read the table, a parent may end and a new process may get its PID. So the chain of parents may be a circle,
  // and the number of steps has a limit.
  for (let steps = 0; at !== undefined && steps <= known.size; steps++) {
    launch ??= at.launchId === undefined ? undefined : at;
    if (at.launchId !== undefined && at.launchId !== launch?.launchId) break;
    if (launch === undefined || at.launchId !== undefined) sessionId ??= at.sessionId;
    if (launch !== undefined && sessionId !== undefined) break;
    at = known.get(at.parent);
  }
  return { launch, sessionId: sessionId ?? null };
}
