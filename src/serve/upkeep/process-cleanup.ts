import { isSessionId } from "../../model/ids.js";
import type { ServerRecord } from "../../model/server.js";
import { isClaimed } from "../../pool/claims/held-claim.js";
import { loadedSessions } from "../../pool/stop/drain.js";
import { usedSessions } from "../../pool/use-markers.js";
import { isLoadedBy } from "../../runtime/history/session-state.js";
import type { LaunchedProcess } from "../../runtime/process/launches.js";
import { endProcesses } from "../../runtime/process/stop.js";
import type { ServeContext } from "../context.js";
import type { Operations } from "../operations.js";
import type { ServerProcesses } from "../report/server-processes.js";

/**
 * How many health intervals the processes of an unloaded session may keep running, so that a client that reconnects
 * still finds them.
 */
const INTERVALS = 12;
/** How long a process may take to end after SIGTERM, in milliseconds. */
const GRACE_MS = 2_000;

/** Ends the processes that unloaded sessions left running: see "Background commands" in docs/architecture.md. */
export class ProcessCleanup {
  readonly #context: ServeContext;
  readonly #operations: Operations;
  readonly #processes: ServerProcesses;
  /** By process: the time (`clock.now()`) at which the process was first seen without a loaded session. */
  readonly #since = new Map<string, number>();
  #lookedAt = Number.NEGATIVE_INFINITY;

  constructor(context: ServeContext, operations: Operations, processes: ServerProcesses) {
    this.#context = context;
    this.#operations = operations;
    this.#processes = processes;
  }

  look(servers: readonly ServerRecord[]): void {
    const { intervalMs } = this.#context.config.health;
    const now = this.#context.clock.now();
    if (now - this.#lookedAt < intervalMs) return;
    this.#lookedAt = now;
    const seen = new Set<string>();
    for (const server of servers) {
      const processes = this.#processes.of(server.launchId ?? "");
      const own = ownProcesses(server, processes);
      const children = processes.filter(({ identity }) => !own.has(identity.pid));
      const due = withoutOwner(server, children).filter(({ identity }) => {
        const key = `${identity.pid} ${identity.startTicks}`;
        seen.add(key);
        const since = this.#since.get(key) ?? now;
        this.#since.set(key, since);
        return now - since >= INTERVALS * intervalMs;
      });
      if (due.length === 0 || isClaimed(server) || this.#operations.isBusy(server.id)) continue;
      this.#operations.begin("processes that its sessions left behind could not be ended", server.id, async () => {
        await this.#end(server, due);
      });
    }
    for (const key of this.#since.keys()) if (!seen.has(key)) this.#since.delete(key);
  }

  async #end(server: ServerRecord, due: readonly LaunchedProcess[]): Promise<void> {
    // Check again, because a session may have been loaded since `look` chose these processes.
    const left = withoutOwner(server, due);
    if (left.length === 0) return;
    const identities = left.map(({ identity }) => identity);
    await endProcesses(identities, GRACE_MS);
    const sessions = [...new Set(left.flatMap(({ sessionId }) => sessionId ?? []))];
    const pids = identities.map(({ pid }) => pid);
    this.#context.log(
      "info",
      `server ${server.id}: ended ${left.length === 1 ? "1 process" : `${left.length} processes`} of unloaded sessions`,
      {
        server: server.id,
        pids,
        sessions,
      },
    );
  }
}

/** The PIDs of a server and of its sandbox's processes: the server's bridge, and its ancestors in the launch. */
function ownProcesses({ process }: ServerRecord, processes: readonly LaunchedProcess[]): ReadonlySet<number> {
  const found = new Set(process?.bridge === undefined ? [] : [process.bridge.pid]);
  for (let at = process?.pid; at !== undefined && !found.has(at); ) {
    found.add(at);
    at = processes.find(({ identity }) => identity.pid === at)?.parent;
  }
  return found;
}

/** @returns the processes that cannot belong to a session that is loaded or being opened */
function withoutOwner(server: ServerRecord, children: readonly LaunchedProcess[]): LaunchedProcess[] {
  if (children.length === 0) return [];
  const used = usedSessions(server);
  let isEmpty: boolean | undefined;
  return children.filter(({ sessionId }) => {
    // The process can change its environment, which contains this id. So validate the id before it becomes part of a
    // path.
    if (sessionId !== null && isSessionId(sessionId)) {
      const isLoaded = server.process !== null && isLoadedBy(server.home, sessionId, server.process);
      return !used.has(sessionId) && !isLoaded;
    }
    isEmpty ??= used.size === 0 && loadedSessions(server).length === 0;
    return isEmpty;
  });
}
