import { existsSync, readdirSync } from "node:fs";
import { serverIdOf } from "../../model/ids.js";
import type { ServerRecord } from "../../model/server.js";
import { ifThere } from "../../runtime/files/if-there.js";
import { homeOf, logPath, serverFolder } from "../../runtime/files/server-folder.js";
import { portOfLaunch } from "../../runtime/files/server-log.js";
import { processesByLaunch } from "../../runtime/process/launches.js";
import { writersOf } from "../../runtime/process/process-table.js";
import { newRecord } from "../start/start.js";

/**
 * Finds this host's servers by their folders and processes, for a registry that cannot be read. A server with a process
 * counts as starting. The next repair adopts it, after the process has proved that it is this server.
 *
 * @param users the ids of users who may have a server
 * @returns the records, and the ids of the folders whose user is not known
 */
export function findServers(
  stateRoot: string,
  users: Iterable<string>,
): { servers: ServerRecord[]; unknown: string[] } {
  const owners = new Map([...users].map((user) => [serverIdOf(user), user]));
  const launches = [...processesByLaunch(stateRoot)];
  const servers: ServerRecord[] = [];
  const unknown: string[] = [];
  for (const id of ifThere(() => readdirSync(serverFolder(stateRoot, ""))) ?? []) {
    const home = homeOf(stateRoot, id);
    if (!existsSync(home)) continue;
    const isShared = /^shared-\d+$/.test(id);
    const user = owners.get(id) ?? userIn(id);
    if (user === null && !isShared) {
      unknown.push(id);
      continue;
    }
    const record = newRecord(
      stateRoot,
      isShared ? { id, user: null, isolation: "shared" } : { id, user, isolation: "per-user" },
    );
    const writers = new Set(writersOf(logPath(home)).map(({ pid }) => pid));
    const launch = launches.find(([, found]) => found.some(({ identity }) => writers.has(identity.pid)));
    const port = portOfLaunch(home);
    servers.push({
      ...record,
      lastPort: port,
      ...(launch === undefined || port === null ? { state: "stopped" as const } : { launchId: launch[0], port }),
    });
  }
  return { servers, unknown };
}

/** The user whose server has this id, if the user's id is the beginning of it. */
function userIn(id: string): string | null {
  const user = id.replace(/-[0-9a-f]{12}$/, "");
  return serverIdOf(user) === id ? user : null;
}
