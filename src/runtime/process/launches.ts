import { createHash } from "node:crypto";
import { LAUNCH_VARIABLE, type ProcessIdentity } from "../../model/process.js";
import { type ProcessVariables, system } from "../../system/system.js";
import { identityOf } from "./process-table.js";

/**
 * The environment variable that contains the state folder of the fleet that started a process. With it, we find the
 * fleet's processes that no registry records.
 */
export const FLEET_VARIABLE = "COPILOTFLEET_OWNER";

/**
 * The environment variable in which the runtime gives tools and MCP servers the session's id (seen with 1.0.85 and
 * 1.0.102).
 */
const SESSION_VARIABLE = "COPILOT_AGENT_SESSION_ID";

/**
 * The mark of a launch, a number of 48 bits. Our launcher gives it to the server as its limit on file locks. So we find what
 * an agent started even if that has changed its environment and its parent. The mark does not reveal the launch id.
 */
export function markOf(launchId: string): number {
  return createHash("sha256").update(launchId).digest().readUIntBE(0, 6);
}

/**
 * The processes of a launch: the server and everything that it started. Looks at every process of this user, so do not call
 * this often.
 */
export function processesOfLaunch(launchId: string): ProcessIdentity[] {
  const { processes } = system();
  const found = [...processes.withVariable(LAUNCH_VARIABLE, launchId), ...processes.withLockLimit(markOf(launchId))];
  return [...new Map(found.map((each) => [each.pid, each])).values()].map(identityOf);
}

export interface LaunchedProcess {
  identity: ProcessIdentity;
  /**
   * The session in the environment of the process, or else in that of its nearest ancestor in the launch. Null if neither
   * names a session.
   */
  sessionId: string | null;
  parent: number;
}

/**
 * The live processes of this fleet, by launch id. Includes descendants whose own environment lacks the variables above.
 */
export function processesByLaunch(stateRoot: string): Map<string, LaunchedProcess[]> {
  const names = [LAUNCH_VARIABLE, FLEET_VARIABLE, SESSION_VARIABLE];
  const known = new Map(
    system()
      .processes.withEnvironment(names)
      .map((found) => [found.pid, found]),
  );
  const launches = new Map<string, LaunchedProcess[]>();
  for (const found of known.values()) {
    const { launch, sessionId } = attribute(found, known);
    const launchId = launch?.variables[LAUNCH_VARIABLE];
    if (launchId === undefined || launch?.variables[FLEET_VARIABLE] !== stateRoot) continue;
    launches.set(launchId, [
      ...(launches.get(launchId) ?? []),
      { identity: identityOf(found), sessionId, parent: found.parent },
    ]);
  }
  return launches;
}

/**
 * Finds the launch and the session of a process in its environment, or else in the environment of its nearest ancestor. Does
 * not look beyond the launch, because the fleet itself may run inside a session of another fleet or of any Copilot CLI.
 */
function attribute(
  found: ProcessVariables,
  known: ReadonlyMap<number, ProcessVariables>,
): { launch: ProcessVariables | undefined; sessionId: string | null } {
  let launch: ProcessVariables | undefined;
  let sessionId: string | undefined;
  let at: ProcessVariables | undefined = found;
  // A parent may end while we read the table, and a new process may get its PID. The chain of parents may then be a
  // circle, so limit the number of steps.
  for (let steps = 0; at !== undefined && steps <= known.size; steps++) {
    const launchId = at.variables[LAUNCH_VARIABLE];
    launch ??= launchId === undefined ? undefined : at;
    if (launchId !== undefined && launchId !== launch?.variables[LAUNCH_VARIABLE]) break;
    if (launch === undefined || launchId !== undefined) sessionId ??= at.variables[SESSION_VARIABLE];
    if (launch !== undefined && sessionId !== undefined) break;
    at = known.get(at.parent);
  }
  return { launch, sessionId: sessionId ?? null };
}
