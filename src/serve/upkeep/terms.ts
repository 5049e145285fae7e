import { countOf } from "../../config/values/text.js";
import { isSessionId } from "../../model/ids.js";
import type { ServerRecord } from "../../model/server.js";
import { isRunning } from "../../pool/server.js";
import { loadedSessions, unloadAtOnce } from "../../pool/stop/drain.js";
import { listTakenSessions } from "../../runtime/history/session-state.js";
import { sessionsOfThisHost } from "../../store/of-this-host.js";
import type { ServeContext } from "../context.js";
import { attempt } from "../failures.js";

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
