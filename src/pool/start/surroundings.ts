import type { Config } from "../../config/schema.js";
import { isFleetError } from "../../errors.js";
import type { EventLog } from "../../model/events/event.js";
import type { ServerRecord } from "../../model/server.js";
import { sharedStatePath, shareSessionState } from "../../runtime/files/server-folder.js";
import { linkToPlace, placePath } from "../../runtime/files/shared-storage.js";
import { chooseSandbox, type Sandbox } from "../../sandbox/sandbox.js";
import type { Store } from "../../store/ports.js";
import { groupOfServer } from "../server.js";

export interface PoolContext {
  store: Store;
  config: Config;
  stateRoot: string;
  env: NodeJS.ProcessEnv;
  events: EventLog;
}

/**
 * Links the home of a server to the folder with its sessions, if that folder is on shared storage or belongs to all
 * shared servers. Otherwise does nothing, because the sessions are in the home.
 */
export async function keepSessions({ store, config, stateRoot }: PoolContext, server: ServerRecord): Promise<void> {
  const { shared } = config.storage;
  if (shared !== null && store.hosts !== null) {
    await linkToPlace(server.home, { shared, host: store.hosts.own, group: groupOfServer(server) });
  } else if (server.isolation === "shared") shareSessionState(stateRoot, server.home);
}

/** The folder outside the home in which a server keeps its sessions; null if it keeps them in its home. */
export function sessionStateOf({ store, config, stateRoot }: PoolContext, server: ServerRecord): string | null {
  const { shared } = config.storage;
  if (shared !== null && store.hosts !== null) {
    return placePath({ shared, host: store.hosts.own, group: groupOfServer(server) });
  }
  return server.isolation === "shared" ? sharedStatePath(stateRoot) : null;
}

/** Chooses the sandbox of a server that is about to start. */
export async function sandboxOf(
  { config, stateRoot, env, events }: PoolContext,
  server: Pick<ServerRecord, "id" | "user" | "home" | "cwd" | "runtimePath">,
): Promise<Sandbox> {
  try {
    return await chooseSandbox(server, { stateRoot, config, env, events });
  } catch (error) {
    if (isFleetError(error, "FLEET_SANDBOX_UNUSABLE")) {
      const about = { user: server.user, serverId: server.id, reason: error.code, detail: error.message };
      events.note({ ...about, type: "server.started", outcome: "refused" });
    }
    throw error;
  }
}
