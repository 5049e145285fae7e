import { existsSync, lstatSync, readlinkSync, realpathSync } from "node:fs";
import { dirname, join } from "node:path";
import { FleetError, quote } from "../../base/errors.js";
import { isSessionId } from "../../base/ids.js";
import type { ServerRecord } from "../../base/server.js";
import { countOf } from "../../base/values/text.js";
import { linkToPlace, makeHostFolder, placePath } from "../../runtime/files/shared-storage.js";
import { listTakenSessions, sessionStatePath } from "../../runtime/history/session-state.js";
import { groupOfServer, isRunning } from "../../servers/server.js";
import { loadedSessions, unloadAtOnce } from "../../servers/stop.js";
import { sessionsOfThisHost } from "../../store/ports.js";
import type { ServeContext } from "../context.js";
import { attempt } from "../failures.js";
import { refuseUnlike } from "../heartbeat.js";

/** Moves this host's sessions to the shared storage, if there is one. Call this before other hosts count this host as alive. */
export async function placeSessions({ store, config }: Pick<ServeContext, "store" | "config">): Promise<void> {
  const { shared } = config.storage;
  if (store.hosts === null) return;
  await refuseUnlike(store.hosts, shared);
  if (shared === null) return;
  const { own } = store.hosts;
  const { servers } = await store.registry.read();
  for (const { home } of Object.values(servers)) refuseUnmounted(home, join(shared, "hosts", own));
  await makeHostFolder(shared, own);
  for (const server of Object.values(servers)) {
    const place = { shared, host: own, group: groupOfServer(server) };
    if (lstatSync(server.home, { throwIfNoEntry: false }) === undefined || isAt(server.home, placePath(place)))
      continue;
    if (isRunning(server)) {
      const message = `Server ${server.id} is running and keeps its sessions outside of the shared storage.`;
      throw new FleetError("FLEET_STORAGE_UNUSABLE", message, {
        suggestions: ["copilotfleet stop --all", "Then start serve again. It moves the sessions."],
      });
    }
    await linkToPlace(server.home, place);
  }
}

/** Throws if a home links to this host's folder and that folder is missing, because then the storage is not mounted. */
function refuseUnmounted(home: string, hostFolder: string): void {
  const state = sessionStatePath(home);
  if (lstatSync(state, { throwIfNoEntry: false })?.isSymbolicLink() !== true || existsSync(hostFolder)) return;
  if (!readlinkSync(state).startsWith(`${hostFolder}/`)) return;
  const message = `This host keeps sessions in ${quote(hostFolder)}, which does not exist. Either nothing is mounted, or the wrong file system is.`;
  throw new FleetError("FLEET_STORAGE_UNUSABLE", message, {
    suggestions: [`findmnt --target ${dirname(dirname(hostFolder))}`, "copilotfleet doctor"],
  });
}

function isAt(home: string, path: string): boolean {
  const state = sessionStatePath(home);
  if (lstatSync(state, { throwIfNoEntry: false })?.isSymbolicLink() !== true) return false;
  return realpathIfThere(state) === realpathIfThere(path);
}

function realpathIfThere(path: string): string {
  return existsSync(path) ? realpathSync(path) : path;
}

/** How many sessions to unload over one connection. The number is limited, because a connection has a time limit. */
const AT_ONCE = 100;

/**
 * A term is a period in which the other hosts consider this host alive without interruption. This class does the work
 * that is due when a term begins or ends.
 */
export class Terms {
  readonly #context: ServeContext;

  constructor(context: ServeContext) {
    this.#context = context;
  }

  /**
   * Records the term on sessions that this host created before it had shared storage. Without a term, no other host may
   * take them over.
   */
  async claimSessions(host: string, term: number): Promise<void> {
    const { store } = this.#context;
    for (const { id } of (await sessionsOfThisHost(store)).filter((record) => record.term === undefined)) {
      await store.sessions.update(id, (draft) => {
        if (draft.term === undefined && (draft.host ?? host) === host) Object.assign(draft, { host, term });
      });
    }
  }

  /** Call this when a term is over. Other hosts may then count this host as gone and take over its sessions. */
  over(): void {
    const { config, state } = this.#context;
    // Other hosts can take over only sessions in shared storage. Without it, the door stays connected to its servers.
    if (config.storage.shared !== null) state.door?.leaveServers();
  }

  /**
   * Call this when a new term begins after other hosts considered this host gone. Unloads the sessions that another
   * host has taken, but that are still in the memory of this host's servers. Unloads them even while somebody uses
   * them, because nothing that a server writes to this host's copy is kept. Never rejects.
   */
  async begun(): Promise<void> {
    await attempt(this.#context, "the sessions that other hosts took over could not be unloaded", async () => {
      const { servers } = await this.#context.store.registry.read();
      for (const server of Object.values(servers).filter(isRunning)) await unloadTaken(server, this.#context);
    });
  }
}

async function unloadTaken(server: ServerRecord, context: ServeContext): Promise<void> {
  const { store, config, directory, log } = context;
  const taken: string[] = [];
  // Once another host has copied a session, nothing on this host shows whether a server still has it loaded. So include
  // all taken sessions.
  for (const id of new Set([...loadedSessions(server), ...listTakenSessions(server.home)])) {
    const record = isSessionId(id) ? await store.sessions.read(id) : null;
    if (record?.host !== undefined && record.host !== directory.own) taken.push(id);
  }
  if (taken.length === 0) return;
  for (let start = 0; start < taken.length; start += AT_ONCE) {
    await unloadAtOnce(server, taken.slice(start, start + AT_ONCE), config.health.timeoutMs);
  }
  log(
    "warn",
    `server ${server.id} may have had ${countOf(taken.length, "session")} in memory that other hosts have now`,
    {
      server: server.id,
      sessions: taken,
    },
  );
}
