import { randomBytes } from "node:crypto";
import { lstatSync, readdirSync, readlinkSync, renameSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { systemCode } from "../../base/errors.js";
import { removeIfThere } from "../../base/held-folder.js";
import { ifThere } from "../../base/if-there.js";
import type { Registry, ServerRecord } from "../../base/server.js";
import type { SessionRecord } from "../../base/session.js";
import { homeOf, serverFolder } from "../../runtime/files/server-folder.js";
import { listSessionFolders, sessionStatePath } from "../../runtime/history/session-state.js";
import { identify, type LaunchedProcess, ownIdentity, processesByLaunch } from "../../runtime/process/process-table.js";
import { stopServer } from "../../runtime/process/stop.js";
import { launchesOf } from "../../servers/admission.js";
import type { Pool } from "../../servers/pool.js";
import { HeldClaim, isBroken, isClaimed, isRunning } from "../../servers/server.js";
import { sessionsOfThisHost } from "../../store/sessions.js";
import type { Store } from "../../store/store.js";

export interface UnusedOptions {
  ttlMs: number;
  nowMs: number;
  user: string | undefined;
}

/**
 * The files and folders that show when a server was last used. Each start of the server, each use through the fleet,
 * and each new or deleted session changes the modification time of at least one of them.
 */
const SIGNS_OF_USE = ["server.log", "connection-token", "uses", "open", "home", join("home", "session-state")];
/** The names of temporary folders: those of removed servers, and those of sessions that are being imported. */
const TEMPORARY = /^\.(?:removed|incoming)-(\d+)-(\d+)-[0-9a-f]+$/;

/**
 * Finds the servers that were unused for longer than the TTL. Call this before gc deletes sessions, because the
 * deletion of a session counts as a use.
 */
export async function findUnused(store: Store, stateRoot: string, options: UnusedOptions): Promise<UnusedServers> {
  const { servers } = await store.registry.read();
  const isOld = (id: string) => lastUse(stateRoot, id, servers[id]) <= options.nowMs - options.ttlMs;
  const unused = Object.values(servers).filter((server) => {
    const wanted = options.user === undefined || server.user === options.user;
    return wanted && isRemovable(server) && isOld(server.id);
  });
  const orphans = options.user === undefined ? orphanIds(stateRoot, { servers }).filter(isOld) : [];
  return new UnusedServers(store, stateRoot, unused, orphans, options.user === undefined);
}

class UnusedServers {
  readonly #store: Store;
  readonly #stateRoot: string;
  readonly #unused: readonly ServerRecord[];
  readonly #orphans: readonly string[];
  /** Whether gc works for all users. It then also removes the folders that killed commands left. */
  readonly #all: boolean;

  constructor(store: Store, stateRoot: string, unused: ServerRecord[], orphans: string[], all: boolean) {
    this.#store = store;
    this.#stateRoot = stateRoot;
    this.#unused = unused;
    this.#orphans = orphans;
    this.#all = all;
  }

  /** The actions that {@link remove} would take after these sessions are deleted. */
  foresee(records: readonly SessionRecord[], deleted: readonly { id: string }[]): Cleared[] {
    const gone = new Set(deleted.map(({ id }) => id));
    const left = records.filter(({ id }) => !gone.has(id));
    const isEmpty = (id: string, home: string) => !holdsSessions(id, home, left, gone);
    return [
      ...this.#unused.filter(({ id, home }) => isEmpty(id, home)).map(({ id }): Cleared => ({ id, action: "removed" })),
      ...this.#orphans
        .filter((id) => isEmpty(id, homeOf(this.#stateRoot, id)))
        .map((id): Cleared => ({ id, action: "orphan-removed" })),
    ];
  }

  async remove(): Promise<Cleared[]> {
    if (this.#all) await sweepServers(this.#stateRoot);
    return [...(await this.#removeUnused()), ...(await this.#removeOrphans())];
  }

  /**
   * Removes the unused servers. Claims them first, so that a command that wants to start one of them waits, and then
   * creates the server again.
   */
  async #removeUnused(): Promise<Cleared[]> {
    if (this.#unused.length === 0) return [];
    using held = new HeldClaim();
    const claimed = await this.#store.registry.update(({ servers }) =>
      this.#unused.flatMap(({ id, startedAt, createdAt }) => {
        const server = servers[id];
        if (server === undefined || !isRemovable(server)) return [];
        if (server.createdAt !== createdAt || server.startedAt !== startedAt) return [];
        server.claim = held.claim;
        return [server];
      }),
    );
    const removed = new Set<string>();
    try {
      const records = await this.#readableRecords();
      for (const { id, home } of claimed) {
        if (holdsSessions(id, home, records)) continue;
        // The fleet creates homes only in the usual place. Do not delete a home elsewhere.
        const moved = home === homeOf(this.#stateRoot, id) ? moveAway(this.#stateRoot, id) : null;
        if (moved !== null) await removeIfThere(moved);
        removed.add(id);
      }
    } finally {
      await this.#store.registry.update(({ servers }) => {
        for (const { id } of claimed) {
          const server = servers[id];
          if (server === undefined || server.claim?.move !== held.claim.move) continue;
          if (removed.has(id)) delete servers[id];
          else server.claim = null;
        }
      });
    }
    return [...removed].map((id) => ({ id, action: "removed" }));
  }

  async #removeOrphans(): Promise<Cleared[]> {
    const removed: Cleared[] = [];
    for (const id of this.#orphans) {
      if (holdsSessions(id, homeOf(this.#stateRoot, id), await this.#readableRecords())) continue;
      if (await removeOrphan(this.#store, this.#stateRoot, id)) removed.push({ id, action: "orphan-removed" });
    }
    return removed;
  }

  /**
   * The records that can be read. gc reports the others when it surveys the sessions. If the record of a session cannot
   * be read, the session's folder still keeps gc from removing the user's own server.
   */
  async #readableRecords(): Promise<SessionRecord[]> {
    return await sessionsOfThisHost(this.#store, () => undefined);
  }
}

/**
 * Removes the folder of a server without a record. @returns false if there is none, or the server has a record by now
 */
async function removeOrphan({ registry }: Pick<Store, "registry">, stateRoot: string, id: string) {
  const moved = moveAway(stateRoot, id);
  if (moved === null) return false;
  // A start records its server before it uses the folder. So if the server is recorded by now, put the folder back.
  if ((await registry.read()).servers[id] !== undefined) {
    renameSync(moved, serverFolder(stateRoot, id));
    return false;
  }
  await removeIfThere(moved);
  return true;
}

/**
 * Renames a server's folder before its removal, so that the old path never leads to a half-removed folder.
 *
 * @returns the new path, or null if there was no folder
 */
export function moveAway(stateRoot: string, serverId: string): string | null {
  const folder = serverFolder(stateRoot, serverId);
  const { pid, startTicks } = ownIdentity();
  const moved = join(dirname(folder), `.removed-${pid}-${startTicks}-${randomBytes(4).toString("hex")}`);
  return ifThere(() => {
    renameSync(folder, moved);
    return moved;
  });
}

/** Removes the temporary folders that killed commands left: those of removed servers and of unfinished imports. */
export async function sweepServers(stateRoot: string): Promise<void> {
  const folder = join(stateRoot, "servers");
  for (const name of names(folder)) {
    const [, pid, startTicks] = TEMPORARY.exec(name) ?? [];
    if (pid !== undefined && identify(Number(pid))?.startTicks !== startTicks) await removeIfThere(join(folder, name));
  }
}

function isRemovable(server: ServerRecord): boolean {
  return (server.state === "stopped" || server.state === "failed") && !isRunning(server) && !isClaimed(server);
}

function lastUse(stateRoot: string, id: string, server: ServerRecord | undefined): number {
  const folder = serverFolder(stateRoot, id);
  const written = SIGNS_OF_USE.map((name) => lstatSync(join(folder, name), { throwIfNoEntry: false })?.mtimeMs ?? 0);
  const created = Date.parse(server?.createdAt ?? "");
  return Math.max(...written, Number.isNaN(created) ? 0 : created);
}

/**
 * Whether a server has sessions. The records decide, and for a user's own server also its folder. All shared servers
 * use one folder, so that folder does not show whose sessions it contains.
 */
function holdsSessions(
  id: string,
  home: string,
  records: readonly SessionRecord[],
  gone: ReadonlySet<string> = new Set(),
): boolean {
  if (records.some(({ serverId }) => serverId === id)) return true;
  const state = sessionStatePath(home);
  const isLink = lstatSync(state, { throwIfNoEntry: false })?.isSymbolicLink() === true;
  if (isLink && basename(dirname(readlinkSync(state))) !== id) return false;
  try {
    return listSessionFolders(home).some((session) => !gone.has(session));
  } catch (error) {
    if (systemCode(error) === "EACCES") return true; // the folder may contain sessions
    throw error;
  }
}

function orphanIds(stateRoot: string, { servers }: Registry): string[] {
  const folder = join(stateRoot, "servers");
  return names(folder).filter((name) => {
    if (name.startsWith(".") || servers[name] !== undefined) return false;
    const inside = names(join(folder, name));
    // A folder with none of these does not belong to a server.
    return inside.includes("home") || inside.includes("connection-token") || inside.includes("server.log");
  });
}

function names(folder: string): string[] {
  return ifThere(() => readdirSync(folder)) ?? [];
}

/**
 * The action that gc took on a server:
 * - `failed`: its main process had ended. gc ended its other processes and recorded it as failed.
 * - `stopped`: the command that was stopping it had died. gc stopped it.
 * - `adopted`: the command that was starting it had died. It runs, and gc recorded it as running.
 * - `removed`: it had no sessions and was unused for longer than the TTL. gc deleted its record and its folder.
 * - `orphan-removed`: like `removed`, for a server's folder without a record.
 * - `stray-killed`: gc killed a process of this fleet that has no record. The id is that of its launch.
 */
export type ServerAction = "failed" | "stopped" | "adopted" | "removed" | "orphan-removed" | "stray-killed";

interface Cleared {
  id: string;
  action: ServerAction;
}

/**
 * Repairs every server record that a crash left broken, as `ps` does. With `dryRun`, changes nothing, and resolves with
 * the actions that a repair would take.
 */
export async function repairServers(
  store: Store,
  pool: Pool,
  options: { dryRun: boolean; signal: AbortSignal },
): Promise<Cleared[]> {
  const { servers } = await store.registry.read();
  const broken = Object.values(servers).filter(isBroken);
  if (options.dryRun) {
    return broken
      .filter((server) => !isClaimed(server) && !(server.state === "draining" && isRunning(server)))
      .map(({ id, state }) => ({ id, action: state === "draining" ? "stopped" : "failed" }));
  }
  if (broken.length === 0) return [];
  const ids = await pool.repair(options.signal);
  const after = (await store.registry.read()).servers;
  return ids.flatMap((id) => {
    const state = after[id]?.state;
    if (state === undefined) return [];
    return [{ id, action: state === "failed" || state === "stopped" ? state : "adopted" }];
  });
}

/**
 * Ends the processes of this fleet that have no record. With `dryRun`, ends nothing and resolves with these processes.
 */
export async function killStrays(store: Store, stateRoot: string, dryRun: boolean): Promise<Cleared[]> {
  const strays = await findStrays(stateRoot, async () => launchesOf(await store.registry.read()));
  if (!dryRun) await endStrays(strays);
  return [...strays.keys()].map((id) => ({ id, action: "stray-killed" }));
}

type Strays = ReadonlyMap<string, readonly LaunchedProcess[]>;

/**
 * The processes of this fleet that have no record, by launch id. @param recorded reads the launch ids of all records
 */
export async function findStrays(stateRoot: string, recorded: () => Promise<ReadonlySet<string>>): Promise<Strays> {
  // A launch is recorded before its process starts. So list the processes before reading the records: a process that
  // starts in between is then not taken for a stray.
  const launches = processesByLaunch(stateRoot);
  if (launches.size === 0) return launches;
  const known = await recorded();
  return new Map([...launches].filter(([launchId]) => !known.has(launchId)));
}

export async function endStrays(strays: Strays): Promise<void> {
  for (const launchId of strays.keys()) await stopServer({ process: null, launchId, home: null }, { graceMs: 0 });
}
