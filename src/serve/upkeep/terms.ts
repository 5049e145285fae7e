import { isSessionId } from "../../model/ids.js";
import type { ServerRecord } from "../../model/server.js";
import { isRunning } from "../../pool/server.js";
import { loadedSessions, unloadAtOnce } from "../../pool/stop/drain.js";
import { listTakenSessions } from "../../runtime/history/session-state.js";
import { sessionsOfThisHost } from "../../store/of-this-host.js";
import type { ServeContext } from "../context.js";
import { logFailure } from "../failures.js";

/** How many sessions are unloaded over one connection, because a connection has a time limit. */
const AT_ONCE = 100;

/** Acts when this host enters its first term, when a term is over, and when another one begins. */
export class Terms {
  readonly #context: ServeContext;

  constructor(context: ServeContext) {
    this.#context = context;
  }

  /** Gives the first term to sessions that this host made before it had shared storage, so others may take them. */
  async claimSessions(host: string, term: number): Promise<void> {
    const { store } = this.#context;
    for (const { id } of (await sessionsOfThisHost(store)).filter((record) => record.term === undefined)) {
      await store.sessions.update(id, (draft) => {
        if (draft.term === undefined && (draft.host ?? host) === host) Object.assign(draft, { host, term });
      });
    }
  }

  /** From now on the host may count as gone, and others may take what it has. */
  over(): void {
    const { config, state } = this.#context;
    // Without shared storage, other hosts cannot take what is on this host's own disk.
    if (config.storage.shared !== null) state.door?.leaveServers();
  }

  /**
   * The host is back in a new term. Unloads the sessions that its servers still have in memory although another host has
   * taken them. It does so even while somebody uses them, because nothing that is written there is saved. Never rejects.
   */
  async begun(): Promise<void> {
    try {
      const { servers } = await this.#context.store.registry.read();
      for (const server of Object.values(servers).filter(isRunning)) await unloadTaken(server, this.#context);
    } catch (error) {
      logFailure(this.#context, "the sessions that other hosts took over could not be unloaded", error);
    }
  }
}

async function unloadTaken(server: ServerRecord, context: ServeContext): Promise<void> {
  const { store, config, directory, log } = context;
  const taken: string[] = [];
  // If another host has already copied a session, nothing here shows whether it is loaded. So check all taken sessions, too.
  for (const id of new Set([...loadedSessions(server), ...listTakenSessions(server.home)])) {
    const record = isSessionId(id) ? await store.sessions.read(id) : null;
    if (record?.host !== undefined && record.host !== directory.own) taken.push(id);
  }
  if (taken.length === 0) return;
  for (let start = 0; start < taken.length; start += AT_ONCE) {
    await unloadAtOnce(server, taken.slice(start, start + AT_ONCE), config.health.timeoutMs);
  }
  log("warn", `server ${server.id} may have had ${taken.length} sessions in memory that are now on other hosts`, {
    server: server.id,
    sessions: taken,
  });
}
