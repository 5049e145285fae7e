import { createServer } from "node:net";
import { FleetError, isFleetError, systemCode } from "../base/errors.js";
import type { EventLog } from "../base/event.js";
import type { Registry, ServerRecord } from "../base/server.js";
import type { Config } from "../config/schema.js";
import { sharedStatePath, shareSessionState } from "../runtime/files/server-folder.js";
import { linkToPlace, placePath } from "../runtime/files/shared-storage.js";
import { chooseSandbox, type Sandbox } from "../sandbox/sandbox.js";
import type { Store } from "../store/store.js";
import { groupOfServer } from "./server.js";

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

/**
 * The preferred port if it is in the range and free, or else the lowest free port of the range. A port is free if no
 * recorded server has it and `skip` does not contain it. The caller reserves the port by recording it in the same
 * registry update.
 */
export function choosePort(
  registry: Registry,
  range: Config["ports"],
  skip: ReadonlySet<number>,
  preferred: number | null,
): number {
  const held = heldPorts(registry);
  const free = (port: number) => !held.has(port) && !skip.has(port);
  if (preferred !== null && preferred >= range.from && preferred <= range.to && free(preferred)) return preferred;
  for (let port = range.from; port <= range.to; port++) {
    if (free(port)) return port;
  }
  const strangers = skip.size === 0 ? "" : `, ${skip.size} by programs outside the fleet`;
  throw new FleetError(
    "FLEET_PORTS_EXHAUSTED",
    `No port is left between ${range.from} and ${range.to}: ${held.size} are held by servers${strangers}.`,
    {
      suggestions: [
        "copilotfleet ps",
        "copilotfleet stop SERVER",
        "Widen ports.from and ports.to in the configuration.",
      ],
    },
  );
}

export function heldPorts(registry: Registry): Set<number> {
  return new Set(
    Object.values(registry.servers).flatMap(({ port, replacement }) =>
      [port, replacement?.port].filter((held) => held != null),
    ),
  );
}

/**
 * Whether this process can listen on the port now. A later attempt may still fail, because another program may take the
 * port first.
 */
export function isBindable(address: string, port: number): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", (error) => {
      const code = systemCode(error);
      if (code === "EADDRINUSE" || code === "EACCES") resolve(false);
      else reject(error);
    });
    server.listen({ host: address, port, exclusive: true }, () => server.close(() => resolve(true)));
  });
}
