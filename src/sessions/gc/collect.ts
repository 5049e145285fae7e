import { randomBytes } from "node:crypto";
import { closeSync, existsSync, fsyncSync, openSync, renameSync, rmdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { quote, systemCode } from "../../base/errors.js";
import { type Budget, HeldFolder, removeTree } from "../../base/held-folder.js";
import { ifThere, makeFolder } from "../../base/if-there.js";
import type { OnProgress } from "../../base/progress.js";
import type { Duration } from "../../base/values/measures.js";
import { printable } from "../../base/values/text.js";
import { unwritable } from "../../runtime/files/server-folder.js";
import { claimedBy, isLoadedBy } from "../../runtime/history/session-state.js";
import { ownIdentity } from "../../runtime/process/process-table.js";
import type { HostDirectory } from "../../servers/directory.js";
import { isRunning } from "../../servers/server.js";
import { sessionsInTurn } from "../../servers/stop.js";
import type { SessionsContext } from "../problems.js";
import type { ClearedRemain } from "../remains.js";
import type { Takeover } from "../takeover.js";
import {
  deleteSessions,
  describeLeftover,
  findUse,
  finishLeftovers,
  type Outcome,
  runningPids,
  type SkipReason,
} from "./delete.js";
import {
  type Candidate,
  gcFolder,
  type HostsSeen,
  JOURNAL,
  type Leftover,
  leftover,
  leftovers,
  MOVED,
  type Note,
  readRun,
  runsBeside,
  type Survey,
  survey,
  ttlOf,
  type UnreadableRecord,
} from "./survey.js";
import { findUnused, killStrays, repairServers, type ServerAction } from "./unused-servers.js";

interface GcContext extends Pick<SessionsContext, "store" | "pool" | "directory" | "events"> {
  stateRoot: string;
  takeover: Pick<Takeover, "settleDue">;
  /** How long a server may take for one answer, in milliseconds. */
  answerMs: number;
  /** Receives a message for each folder that gc handles only in part. */
  warnings: string[];
}

export interface GcRequest {
  /**
   * How long a session must be unused before it is deleted, such as `24h`. Default: `session.ttl` of the configuration.
   */
  ttl?: Duration;
  /** Change nothing, and report what would be done. */
  dryRun?: boolean;
  user?: string;
  /** Delete only sessions with these ids, if they are past their TTL. Default: all. */
  sessionIds?: readonly string[];
  /** Called before each batch of sessions that this host deletes. */
  onProgress?: OnProgress;
  /** If it aborts, gc ends after the current step and leaves nothing half done. */
  signal?: AbortSignal;
}

export interface GcOptions extends Required<Pick<GcRequest, "dryRun" | "signal">> {
  /**
   * How long a session must be unused before it is deleted, in milliseconds; infinite: such sessions are kept. A
   * session's own TTL takes precedence.
   */
  ttlMs: number;
  user: string | undefined;
  sessionIds?: readonly string[] | undefined;
  onProgress?: OnProgress | undefined;
}

export interface GcResult {
  /** Contains the owners, because sessions of two users may have the same id if the fleet did not create them. */
  deleted: { id: string; owner: string | null; ageMs: number; bytes: number }[];
  skipped: { id: string; reason: SkipReason }[];
  /** Bytes of the deleted sessions' files. */
  freedBytes: number;
  dryRun: boolean;
  servers: { id: string; action: ServerAction }[];
  /** The left-overs of takeovers that gc has removed from the shared storage. */
  remains: ClearedRemain[];
  /** The records that cannot be read. gc leaves these sessions alone. */
  unreadable: UnreadableRecord[];
}

/**
 * How many sessions are deleted together. A user who resumes one of them during the deletion waits until the deletion
 * ends.
 */
const SESSIONS_AT_ONCE = 200;

/**
 * Deletes every unused session past its TTL, on disk and in the store. Repairs broken servers and removes unused ones.
 * Any number of gcs and other commands may run at the same time. If a gc is killed, the next one finishes its work.
 */
export async function collectGarbage(context: GcContext, options: GcOptions): Promise<GcResult> {
  const { store, stateRoot, pool, directory } = context;
  const { dryRun, user, signal, ttlMs, sessionIds } = options;
  const servers = await repairServers(store, pool, { dryRun, signal });
  if (user === undefined) servers.push(...(await killStrays(store, stateRoot, dryRun)));
  if (!dryRun) await context.takeover.settleDue((record) => Date.now() - ttlOf(record, ttlMs), signal);
  // Find the unused servers before any session is deleted, because a deletion looks like a use of the server.
  const unused = await findUnused(store, stateRoot, { ttlMs, user, nowMs: Date.now() });
  const hosts = await seeHosts(directory);
  const isOwn = await directory.holds();
  const places = await directory.places();
  const found = await survey(store, stateRoot, { ttlMs, user, nowMs: Date.now(), hosts, isOwn, places });
  context.warnings.push(...found.warnings);
  if (sessionIds !== undefined) {
    const chosen = new Set(sessionIds);
    found.candidates = found.candidates.filter(({ id }) => chosen.has(id));
  }
  const outcomes = dryRun
    ? await foresee(context, found, user, hosts)
    : await deleteAll(context, found, options, hosts);
  const deleted = outcomes.flatMap(({ session, skipped }) => (skipped === null ? [session] : []));
  if (!dryRun)
    for (const { id, owner } of deleted)
      context.events.note({ type: "session.deleted", user: owner, sessionId: id, reason: "ttl" });
  if (dryRun) servers.push(...unused.foresee(found.records, deleted));
  else {
    servers.push(...(await unused.remove()));
    if (user === undefined) await store.sweep();
  }
  return {
    deleted: deleted.map(({ id, owner, ageMs, bytes }) => ({ id, owner, ageMs, bytes })),
    skipped: outcomes.flatMap(({ session, skipped }) =>
      skipped === null ? [] : [{ id: session.id, reason: skipped }],
    ),
    freedBytes: deleted.reduce((sum, { bytes }) => sum + bytes, 0),
    dryRun,
    servers,
    remains: [],
    unreadable: found.unreadable,
  };
}

async function seeHosts(directory: HostDirectory): Promise<HostsSeen> {
  const there = new Map((await directory.list()).map(({ name, gone }) => [name, !gone]));
  return { own: directory.own, there };
}

async function deleteAll(
  context: GcContext,
  found: Survey,
  { user, signal, onProgress }: GcOptions,
  hosts: HostsSeen,
): Promise<Outcome[]> {
  const { store } = context;
  const outcomes: Outcome[] = [];
  const total = found.candidates.length;
  let done = 0;
  const deleteIn = async (run: Run | null, candidates: Candidate[]) => {
    for (let start = 0; start < candidates.length; start += SESSIONS_AT_ONCE) {
      signal.throwIfAborted();
      onProgress?.({ done, total, turns: [] });
      const part = candidates.slice(start, start + SESSIONS_AT_ONCE);
      outcomes.push(...(await deleteSessions(store, run, part, hosts)));
      done += part.length;
    }
  };
  await deleteIn(
    null,
    found.candidates.filter(({ path }) => path === null),
  );
  for (const state of found.states) {
    const run = new Run(state.path);
    let finished = false;
    try {
      const killed = found.otherRuns.get(state)?.killed ?? new Set();
      if (user === undefined) outcomes.push(...(await finishLeftovers(store, run, run.inherit(killed))));
      await deleteIn(
        run,
        found.candidates.filter((session) => session.state === state && session.path !== null),
      );
      finished = true;
    } finally {
      run.end(finished);
      context.warnings.push(...run.warnings);
    }
  }
  return await tellTurns(context, outcomes);
}

async function foresee(
  context: GcContext,
  found: Survey,
  user: string | undefined,
  hosts: HostsSeen,
): Promise<Outcome[]> {
  const { store } = context;
  const pids = runningPids(await store.registry.read());
  const outcomes: Outcome[] = [];
  for (const session of found.candidates)
    outcomes.push({ session, skipped: await findUse(store, session, pids, hosts) });
  const left = user === undefined ? found.states.flatMap(({ path }) => leftovers(path)) : [];
  const begun = left.map((leftover) => ({ session: describeLeftover(leftover), skipped: null }));
  return await tellTurns(context, [...outcomes, ...begun]);
}

/** Asks the servers which sessions that were skipped as `active` are in a turn, and changes their reason to `busy`. */
async function tellTurns(context: GcContext, outcomes: Outcome[]): Promise<Outcome[]> {
  const active = new Set(outcomes.filter(({ skipped }) => skipped === "active").map(({ session }) => session.id));
  if (active.size === 0) return outcomes;
  const { servers } = await context.store.registry.read();
  const asked = Object.values(servers).filter((server) => {
    const { home, process } = server;
    return process !== null && isRunning(server) && [...active].some((id) => isLoadedBy(home, id, process));
  });
  const busy = new Set((await Promise.all(asked.map((server) => sessionsInTurn(server, context.answerMs)))).flat());
  return outcomes.map((outcome) =>
    outcome.skipped === "active" && busy.has(outcome.session.id) ? { ...outcome, skipped: "busy" } : outcome,
  );
}

/**
 * Replaces the PID and the start time in the name of an ended run's folder. No process has the PID 0, so the next gc
 * takes over the folder.
 */
const NOBODY = "0-0";
/** How many files and folders one gc removes from a session-state folder at most. */
const MOST_REMOVED = 100_000;

/**
 * One run of gc in one session-state folder. The run has its own folder, to which it moves the sessions that it
 * deletes.
 */
export class Run {
  readonly #statePath: string;
  readonly #path: string;
  /** The folders that this run took over from killed gcs. They stay until the work in their journals is done. */
  readonly #inherited: string[] = [];
  #made = false;
  #notes: readonly Note[] = [];
  readonly #budget: Budget = { left: MOST_REMOVED };
  /** Messages about sessions that this run could restore only in part. */
  readonly warnings: string[] = [];

  /** @param statePath the session-state folder, with all links resolved */
  constructor(statePath: string) {
    const { pid, startTicks } = ownIdentity();
    this.#statePath = statePath;
    this.#path = join(gcFolder(statePath), `${pid}-${startTicks}-${randomBytes(4).toString("hex")}`);
  }

  /**
   * Takes over the folders of killed gcs by renaming them, so that no other gc does.
   *
   * @param killed the folders of the gcs that were dead at the survey. If a gc was killed later, its folder stays for
   * the next gc, because the survey left out the sessions in its journal.
   */
  inherit(killed: ReadonlySet<string>): Leftover[] {
    const before = runsBeside(this.#statePath).filter(({ path }) => killed.has(path));
    if (before.length === 0) return [];
    for (const { path } of before) {
      const mine = `${this.#path}${randomBytes(4).toString("hex")}`;
      if (renameIfThere(path, mine)) this.#inherited.push(mine);
    }
    return this.#inherited.flatMap((path) => {
      const { notes, moved } = readRun(path);
      return moved.map((id) => leftover(path, id, notes));
    });
  }

  /**
   * Writes to the journal which sessions are about to be deleted. Keeps the notes of sessions that are still in this
   * gc's folder: if this gc is killed, the next gc needs them. When this returns, the notes survive a power failure.
   */
  note(notes: readonly Note[]): void {
    try {
      if (!this.#made) makeRunFolder(this.#path);
      const moved = new Set(this.#made ? readRun(this.#path).moved : []);
      this.#made = true;
      const kept = this.#notes.filter(({ id }) => moved.has(id));
      this.#notes = [...kept, ...notes];
      replaceFile(join(this.#path, JOURNAL), JSON.stringify(this.#notes));
    } catch (error) {
      throw unwritable(this.#statePath, error);
    }
  }

  /**
   * Moves a session into this gc's folder, where no other process finds it. @returns the new path; null if the session
   * no longer exists
   */
  take(id: string): string | null {
    const moved = join(this.#path, MOVED, id);
    using state = this.#openState();
    if (state?.lstat(id)?.isDirectory() !== true) return null;
    return ifThere(() => state.moveOut(id, moved)) === null ? null : moved;
  }

  /**
   * Opens the session-state folder. Returns null if a folder in its path was replaced after the survey, perhaps by a
   * link to another user's sessions.
   */
  #openState(): HeldFolder | null {
    const state = HeldFolder.open(this.#statePath);
    if (state === null || state.realPath === this.#statePath) return state;
    state[Symbol.dispose]();
    return null;
  }

  /** Removes a moved session. @returns false if files are left for the next gc, because there are too many */
  async remove(moved: string): Promise<boolean> {
    return await removeTree(moved, this.#budget);
  }

  /** Removes a session that was not moved. @returns as {@link remove} */
  async removeInPlace(id: string): Promise<boolean> {
    using state = this.#openState();
    return state?.lstat(id) === undefined || (await this.remove(state.at(id)));
  }

  /**
   * Whether a server opened the session just as it was moved. The runtime then creates the session's folder again, with
   * a lock in it. But if the new folder has a description (`workspace.yaml`), it belongs to a new session with this id,
   * and its lock does not count.
   */
  isOpened(id: string, moved: string, pids: ReadonlySet<number>): boolean {
    const original = join(this.#statePath, id);
    const isNew = existsSync(join(original, "workspace.yaml"));
    return [...claimedBy(moved), ...(isNew ? [] : claimedBy(original))].some((pid) => pids.has(pid));
  }

  /**
   * Moves a session back. If the runtime has made the session's folder again, moves the session into that folder, where
   * it stays as a folder of its own.
   */
  giveBack(id: string, moved: string): void {
    using state = this.#openState();
    if (state === null) return; // the next gc tries again
    if (state.lstat(id) === undefined) {
      renameSync(moved, state.at(id));
      return;
    }
    using target = state.folder(id);
    if (target === null) return;
    const kept = `before-gc-${randomBytes(4).toString("hex")}`;
    renameSync(moved, target.at(kept));
    this.warnings.push(
      `A server opened session ${quote(id)} while gc moved it, so the server made the session's folder again. The session's earlier files are in ${printable(join(this.#statePath, id, kept))}.`,
    );
  }

  /**
   * Ends the run. If it has `finished`, removes its folders. Folders that still contain sessions, and all folders of an
   * unfinished run, stay for the next gc.
   */
  end(finished: boolean): void {
    for (const path of [...this.#inherited, this.#path]) {
      if (finished && readRun(path).moved.length === 0) rmSync(path, { recursive: true, force: true });
      else renameIfThere(path, join(dirname(path), `${NOBODY}-${randomBytes(4).toString("hex")}`));
    }
    // A read-only disk would refuse the removal even if the folder does not exist.
    if (!existsSync(dirname(this.#path))) return;
    try {
      rmdirSync(dirname(this.#path));
    } catch (error) {
      // These codes show that another gc uses the folder or has removed it.
      if (!["ENOENT", "ENOTEMPTY", "EEXIST"].includes(systemCode(error) ?? "")) throw error;
    }
  }
}

function renameIfThere(from: string, to: string): boolean {
  return ifThere(() => renameSync(from, to)) !== null;
}

/** Tries again if the parent folder is missing, because another gc removes the empty parent folder when it ends. */
function makeRunFolder(path: string): void {
  for (let attempt = 0; ; attempt++) {
    try {
      for (const folder of [dirname(path), path, join(path, MOVED)]) makeFolder(folder);
      for (const folder of [dirname(dirname(path)), dirname(path)]) sync(folder);
      return;
    } catch (error) {
      if (systemCode(error) !== "ENOENT" || attempt > 100) throw error;
    }
  }
}

/**
 * Replaces a file with a rename, so that a kill leaves the old or the new content. Syncs the new content to the disk.
 */
function replaceFile(path: string, text: string): void {
  const next = `${path}.next`;
  writeFileSync(next, text, { mode: 0o600 });
  sync(next);
  renameSync(next, path);
  sync(dirname(path));
}

function sync(path: string): void {
  const fd = openSync(path, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}
