import { type Dirent, existsSync, readdirSync, readFileSync, realpathSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { setImmediate as yieldToOthers } from "node:timers/promises";
import { quote, systemCode } from "../../base/errors.js";
import { HeldFolder, walk } from "../../base/held-folder.js";
import { isSessionId } from "../../base/ids.js";
import { ifThere } from "../../base/if-there.js";
import type { ProcessIdentity, Registry, ServerRecord } from "../../base/server.js";
import type { SessionRecord, SessionUser } from "../../base/session.js";
import { printable } from "../../base/values/text.js";
import { HOME } from "../../runtime/files/server-folder.js";
import { SHARED_GROUP } from "../../runtime/files/shared-storage.js";
import {
  HISTORY,
  isRuntimeFolder,
  MOST_FOLDERS,
  openSessionState,
  sessionStatePath,
} from "../../runtime/history/session-state.js";
import { identify, isAlive, ownIdentity } from "../../runtime/process/process-table.js";
import { groupOfSession } from "../../servers/server.js";
import type { UnreadableError } from "../../store/failures.js";
import type { Store } from "../../store/store.js";
import type { UnusedOptions } from "./unused-servers.js";

/** A session-state folder: it contains the folders of sessions. All shared servers of a host may use the same one. */
interface StateFolder {
  /** With all links resolved. */
  path: string;
  servers: ServerRecord[];
  /** The owner of the unrecorded sessions in this folder; null if that is not known. */
  owner: string | null;
}

export interface Candidate {
  id: string;
  owner: string | null;
  record: SessionRecord | null;
  /** The session-state folder in which the session should be; null if this host has no such folder. */
  state: StateFolder | null;
  path: string | null;
  /** The server whose folder has the session's use markers. */
  server: ServerRecord | null;
  ageMs: number;
  bytes: number;
}

const MOST_UNRECORDED = 1_000;

/** A record that cannot be read. gc leaves the session alone, because nothing shows whether it is due. */
export interface UnreadableRecord {
  /** The id of the session. */
  id: string;
  code: UnreadableError["code"];
  /** Names the file or key of the record. */
  message: string;
  /** How to restore the record, or to give it up. */
  suggestions: string[];
}

export interface Survey {
  /** Messages about session-state folders that this gc handles only in part. */
  warnings: string[];
  states: StateFolder[];
  records: SessionRecord[];
  unreadable: UnreadableRecord[];
  candidates: Candidate[];
  otherRuns: ReadonlyMap<StateFolder, OtherRuns>;
}

interface SurveyOptions extends UnusedOptions {
  hosts: HostsSeen;
  /** Whether a session belongs to this host. Other hosts delete their own sessions. */
  isOwn: (record: SessionRecord) => boolean;
  /** The session-state folders of this host in the shared storage, by group of servers. */
  places: ReadonlyMap<string, string>;
}

/** gc measures folders synchronously. After this many sessions, it lets other work in the process run. */
const LOOKS_AT_ONCE = 50;

/**
 * Finds every session past its TTL in the records and on the disk. Does not ask the runtime, because the runtime's list
 * omits sessions that never had a turn. Changes nothing.
 */
export async function survey(store: Store, stateRoot: string, options: SurveyOptions): Promise<Survey> {
  // A session that is created after these reads looks unrecorded below, but it is too young to be due.
  const registry = await store.registry.read();
  const unreadable: UnreadableRecord[] = [];
  const all = await store.sessions.list((id, { code, message, suggestions }) => {
    unreadable.push({ id, code, message, suggestions: [...suggestions] });
  });
  const unjudged = new Set(unreadable.map(({ id }) => id));
  const records = all.filter(options.isOwn);
  const foreign = new Map(all.filter((record) => !options.isOwn(record)).map((record) => [record.id, record]));
  const warnings: string[] = [];
  const { states, stateOf } = stateFolders(registry, stateRoot, options.places);
  const found: Candidate[] = [];
  const recordedIn = new Map<StateFolder, Map<string, SessionRecord>>(states.map((state) => [state, new Map()]));
  for (const record of records) {
    const state = stateOf(record);
    if (state === undefined) found.push(recordOnly(record, null, registry));
    else recordedIn.get(state)?.set(record.id, record);
  }
  for (const state of states) {
    const recorded = recordedIn.get(state) ?? new Map<string, SessionRecord>();
    const folders = sessionFolders(state, recorded, warnings);
    if (folders === null) continue;
    for (const record of recorded.values())
      if (!folders.has(record.id)) found.push(recordOnly(record, state, registry));
    for (const id of folders) {
      if (unjudged.has(id)) continue;
      // Another host has this session. Skip its folder here: it is still being moved, or a move left this copy behind.
      const elsewhere = foreign.get(id);
      if (elsewhere !== undefined && (state.owner === null || state.owner === elsewhere.owner)) continue;
      const record = recorded.get(id) ?? null;
      const path = join(state.path, id);
      const server = record === null ? (state.servers[0] ?? null) : (registry.servers[record.serverId] ?? null);
      found.push({ id, owner: record?.owner ?? state.owner, record, state, path, server, ageMs: 0, bytes: 0 });
    }
  }
  const otherRuns = new Map(states.map((state) => [state, otherRunsAt(state.path)]));
  const candidates: Candidate[] = [];
  const unrecorded = new Map<StateFolder | null, number>();
  for (const [index, session] of found.entries()) {
    if (index % LOOKS_AT_ONCE === LOOKS_AT_ONCE - 1) await yieldToOthers();
    if (options.user !== undefined && session.owner !== options.user) continue;
    const { taken, noted } = (session.state && otherRuns.get(session.state)) ?? { taken: new Set(), noted: new Map() };
    if (taken.has(session.id)) continue; // another gc is deleting it
    const candidate = judge(session, options, noted.get(session.id));
    if (candidate === null) continue;
    if (candidate.record === null) {
      const before = unrecorded.get(candidate.state) ?? 0;
      unrecorded.set(candidate.state, before + 1);
      // One user's agent must not keep gc so busy that the sessions of all other users wait.
      if (before >= MOST_UNRECORDED) continue;
    }
    candidates.push(candidate);
  }
  for (const [state, number] of unrecorded) {
    if (state !== null && number > MOST_UNRECORDED)
      warnings.push(
        `${nameOf(state)} has ${number} sessions to delete that the fleet did not make. This gc deletes ${MOST_UNRECORDED} of them.`,
      );
  }
  return { states, records, unreadable, candidates, otherRuns, warnings };
}

/**
 * The ids of the sessions that have a folder. If the session-state folder has more than `MOST_FOLDERS` entries, leaves
 * out unrecorded sessions beyond that number. Null if the session-state folder cannot be read.
 */
function sessionFolders(
  state: StateFolder,
  recorded: ReadonlyMap<string, SessionRecord>,
  warnings: string[],
): Set<string> | null {
  try {
    using folder = HeldFolder.open(state.path);
    if (folder === null) return new Set();
    const { entries, more } = folder.entries(MOST_FOLDERS);
    const names = entries
      .filter((entry) => entry.isDirectory() && isSessionId(entry.name) && !isRuntimeFolder(entry.name))
      .map(({ name }) => name);
    if (!more) return new Set(names);
    warnings.push(
      `${nameOf(state)} has more than ${MOST_FOLDERS} folders of sessions. Only the first ones are checked.`,
    );
    const others = [...recorded.keys()].filter((id) => folder.lstat(id)?.isDirectory() === true);
    return new Set([...names, ...others]);
  } catch (error) {
    const code = systemCode(error);
    if (code === undefined) throw error;
    warnings.push(`${nameOf(state)} cannot be read (${code}). Its sessions are left unchanged.`);
    return null;
  }
}

function nameOf({ owner, path }: StateFolder): string {
  return owner === null ? printable(path) : `The home of user ${quote(owner)} (${printable(path)})`;
}

function judge(session: Candidate, { ttlMs, nowMs, hosts }: SurveyOptions, note: Note | undefined): Candidate | null {
  const { record, path } = session;
  // If a killed gc had already deleted the session's record, the session is due, unless somebody has used it since.
  const begun = record === null ? note : undefined;
  const abandoned = isAbandoned(record, hosts);
  const dueBeforeMs = begun?.notedAtMs ?? (abandoned ? Number.POSITIVE_INFINITY : nowMs - ttlOf(record, ttlMs));
  const recordedMs = record === null ? Number.NEGATIVE_INFINITY : lastUseOf(record, nowMs);
  if (recordedMs > dueBeforeMs) return null;
  const owner = begun?.owner ?? session.owner;
  if (path === null) return { ...session, ageMs: nowMs - recordedMs };
  const measured = measureFolder(path, dueBeforeMs);
  if (measured === "young" || measured === "gone") return null;
  const newestMs = Math.max(measured.newestMs, recordedMs);
  return { ...session, owner, bytes: measured.bytes, ageMs: Math.max(0, Math.round(nowMs - newestMs)) };
}

function recordOnly(record: SessionRecord, state: StateFolder | null, { servers }: Registry): Candidate {
  const server = servers[record.serverId] ?? null;
  return { id: record.id, owner: record.owner, record, state, path: null, server, ageMs: 0, bytes: 0 };
}

/**
 * All session-state folders: those of recorded servers, those in server folders without a record, and those in the
 * shared storage, which may contain sessions of servers that never ran on this host. `stateOf` returns the
 * session-state folder of a session, even if the session's server has no record.
 */
function stateFolders(
  { servers }: Registry,
  stateRoot: string,
  places: ReadonlyMap<string, string>,
): { states: StateFolder[]; stateOf: (record: SessionRecord) => StateFolder | undefined } {
  const byPath = new Map<string, StateFolder>();
  const byServer = new Map<string, StateFolder>();
  const byGroup = new Map<string, StateFolder>();
  const stateAt = (real: string): StateFolder => {
    const state = byPath.get(real) ?? { path: real, servers: [], owner: null };
    byPath.set(real, state);
    return state;
  };
  const known = new Set([...places.values()].flatMap((path) => realPathIfThere(path) ?? []));
  const add = (real: string | null, id: string, server: ServerRecord | undefined) => {
    if (real === null) return;
    const state = stateAt(real);
    byServer.set(id, state);
    if (server !== undefined) state.servers.push(server);
  };
  for (const server of Object.values(servers)) add(stateOfHome(server.home, stateRoot, known), server.id, server);
  for (const [group, path] of places) {
    const real = realPathIfThere(path);
    if (real !== null) byGroup.set(group, stateAt(real));
  }
  const folder = join(stateRoot, "servers");
  for (const entry of ifThere(() => readdirSync(folder, { withFileTypes: true })) ?? []) {
    const { name } = entry;
    if (!entry.isDirectory() || servers[name] !== undefined || name.startsWith(".")) continue;
    add(stateOfHome(join(folder, name, "home"), stateRoot, known), name, undefined);
    // All shared servers use the same session-state folder. It is directly in the folder of their group, which has no
    // home.
    using common = HeldFolder.open(sessionStatePath(join(folder, name)));
    add(common?.realPath ?? null, name, undefined);
  }
  for (const state of byPath.values()) {
    const [server, ...others] = state.servers;
    if (others.length === 0) state.owner = server?.user ?? null;
  }
  const stateOf = (record: SessionRecord) => byGroup.get(groupOfSession(record)) ?? byServer.get(record.serverId);
  return { states: [...byPath.values()], stateOf };
}

/**
 * The session-state folder of a home, with all links resolved. Null if there is none, or if a link leads elsewhere.
 *
 * @param known the real paths of this host's folders in the shared storage. A link in a home may lead only to one of
 * these paths, or to the folder that all shared servers use.
 */
function stateOfHome(home: string, stateRoot: string, known: ReadonlySet<string>): string | null {
  const own = realPathIfThere(home);
  if (own === null) return null;
  const inHome = sessionStatePath(own);
  try {
    using state = openSessionState(home);
    if (state === null) return null;
    const { realPath } = state;
    const common = sessionStatePath(join(realpathSync(stateRoot), "servers", SHARED_GROUP));
    return realPath === inHome || realPath === common || known.has(realPath) ? realPath : null;
  } catch (error) {
    if (systemCode(error) !== "EACCES") throw error;
    return realPathIfThere(inHome) === inHome ? inHome : null; // reading it later reports the error
  }
}

function realPathIfThere(path: string): string | null {
  return ifThere(() => realpathSync(path));
}

interface Measured {
  bytes: number;
  /**
   * When a file in the folder was last written (Unix time in ms). For a folder without files, when the folder itself
   * last changed.
   */
  newestMs: number;
}

const MOST_ENTRIES = 10_000;

/**
 * Measures the size and age of a session's folder in one walk. A file that was written after `youngAfterMs` makes the
 * folder `young` and ends the walk. Does not follow links. In a folder with more than `MOST_ENTRIES` entries, only the
 * history and the first files count, so that a user cannot keep a session for ever by filling its folder.
 */
export function measureFolder(path: string, youngAfterMs: number): Measured | "young" | "gone" {
  using parent = HeldFolder.open(dirname(path));
  using folder = parent?.folder(basename(path)) ?? null;
  if (folder === null) return "gone";
  const total: Measured = { bytes: 0, newestMs: Number.NEGATIVE_INFINITY };
  const history = folder.lstat(HISTORY);
  if (history !== undefined && history.mtimeMs > youngAfterMs) return "young";
  for (const { mtimeMs, size } of walk(folder, { left: MOST_ENTRIES })) {
    if (mtimeMs > youngAfterMs) return "young";
    total.bytes += size;
    total.newestMs = Math.max(total.newestMs, mtimeMs);
  }
  if (total.newestMs === Number.NEGATIVE_INFINITY) total.newestMs = folder.stats.mtimeMs;
  return total.newestMs > youngAfterMs ? "young" : total;
}

export function ttlOf(record: SessionRecord | null, ttlMs: number): number {
  return record?.ttlMs ?? ttlMs;
}

/**
 * When the session was last used (Unix time in ms). If the recorded date is damaged, returns `nowMs`, because such a
 * date must not lead to a deletion.
 */
export function lastUseOf(record: SessionRecord, nowMs: number): number {
  const used = Date.parse(record.lastUsedAt);
  return Number.isNaN(used) ? nowMs : used;
}

/** The hosts of the fleet. gc needs them to decide whether a process is alive. */
export interface HostsSeen {
  /** The name of this host; null if no other host uses the store. */
  own: string | null;
  /** For each host in the directory, whether it is alive. */
  there: ReadonlyMap<string, boolean>;
}

/** Whether the process that used an ephemeral session has ended. gc then deletes the session at any age. */
export function isAbandoned(record: SessionRecord | null, hosts: HostsSeen): boolean {
  const usedBy = record?.usedBy ?? null;
  if (record?.persistence !== "ephemeral" || usedBy === null) return false;
  return isElsewhere(usedBy, hosts) ? hosts.there.get(usedBy.at ?? "") === false : isOver(usedBy);
}

/**
 * Whether the process that uses an ephemeral session is alive. A process on another host counts as alive while its host
 * is alive.
 */
export function isInUse({ usedBy }: SessionRecord, hosts: HostsSeen): boolean {
  if (usedBy === null) return false;
  return isElsewhere(usedBy, hosts) ? hosts.there.get(usedBy.at ?? "") === true : isAlive(usedBy);
}

function isElsewhere({ at }: SessionUser, { own }: HostsSeen): boolean {
  return at !== undefined && at !== own;
}

/** Whether the process has ended. False if it was in another PID namespace, where we cannot see it. */
function isOver(identity: ProcessIdentity): boolean {
  const own = ownIdentity();
  const rebooted = identity.host === own.host && identity.bootId !== own.bootId;
  const visible = identity.bootId === own.bootId && identity.pidNamespace === own.pidNamespace;
  return rebooted || (visible && !isAlive(identity));
}

/*
 * Before gc deletes sessions, it moves them into a temporary folder near their session-state folder. The folder's name
 * contains the PID and the start time of the gc process. A journal in the folder lists the sessions. If gc is killed,
 * the next gc finds this folder and finishes the work.
 */
const GC_FOLDER = ".copilotfleet-gc";
export const JOURNAL = "journal.json";
export const MOVED = "sessions";
const NAME = /^(\d+)-(\d+)-[0-9a-f]+$/;

/** A session that a gc is about to delete. */
export interface Note {
  id: string;
  owner: string | null;
  record: SessionRecord | null;
  /** Unix time in milliseconds. A later write to the session counts as a use. */
  notedAtMs: number;
}

/** The folder of a gc that is running or was killed. `moved` contains the ids of the sessions that are still in it. */
interface FoundRun {
  path: string;
  alive: boolean;
  notes: Note[];
  moved: string[];
}

/** The unfinished deletions of other gcs in a session-state folder. */
interface OtherRuns {
  /** Ids of the sessions that a running gc is deleting. */
  taken: Set<string>;
  /** The sessions that a killed gc was about to delete, by id. This gc may delete them at any age. */
  noted: Map<string, Note>;
  /** The folders of gc runs that were killed. */
  killed: Set<string>;
}

/**
 * The folder for the runs of gc. For the sessions in a home, it is beside that home, because it must be on the same
 * disk and the user's agent must not be able to write there.
 */
export function gcFolder(statePath: string): string {
  const parent = dirname(statePath);
  return join(basename(parent) === HOME ? dirname(parent) : parent, GC_FOLDER);
}

function otherRunsAt(statePath: string): OtherRuns {
  const runs = runsBeside(statePath);
  const notes = (alive: boolean) => runs.filter((run) => run.alive === alive).flatMap((run) => run.notes);
  return {
    taken: new Set(notes(true).map(({ id }) => id)),
    noted: new Map(notes(false).map((note) => [note.id, note])),
    killed: new Set(runs.flatMap(({ alive, path }) => (alive ? [] : [path]))),
  };
}

/**
 * Whether a running gc may still restore the session: the gc's journal lists the session, and the session's folder
 * still exists, in the home or in the gc's folder. gc writes its journal before it deletes a record.
 */
export function isBeingDeleted(home: string, sessionId: string): boolean {
  using state = openSessionState(home);
  if (state === null) return false;
  const runs = runsBeside(state.realPath).filter(({ alive }) => alive);
  if (!runs.some(({ notes }) => notes.some(({ id }) => id === sessionId))) return false;
  const isInHome = () => state.lstat(sessionId) !== undefined;
  // Look into the home twice, because gc may move the folder back into the home between our look at the home and our
  // look at gc's folder.
  return isInHome() || runs.some(({ path }) => existsSync(join(path, MOVED, sessionId))) || isInHome();
}

/** A session that a killed gc has moved into its temporary folder, but neither removed nor moved back. */
export interface Leftover {
  note: Note;
  path: string;
}

export function leftovers(statePath: string): Leftover[] {
  return runsBeside(statePath)
    .filter(({ alive }) => !alive)
    .flatMap(({ path, notes, moved }) => moved.map((id) => leftover(path, id, notes)));
}

export function leftover(runPath: string, id: string, notes: readonly Note[]): Leftover {
  const note = notes.find((known) => known.id === id) ?? { id, owner: null, record: null, notedAtMs: 0 };
  return { note, path: join(runPath, MOVED, id) };
}

export function runsBeside(statePath: string): FoundRun[] {
  const folder = gcFolder(statePath);
  return entriesOf(folder).flatMap(({ name }) => {
    const [, pid, startTicks] = NAME.exec(name) ?? [];
    if (pid === undefined) return [];
    const path = join(folder, name);
    return [{ path, alive: identify(Number(pid))?.startTicks === startTicks, ...readRun(path) }];
  });
}

export function readRun(path: string): Pick<FoundRun, "notes" | "moved"> {
  const moved = entriesOf(join(path, MOVED)).filter((entry) => entry.isDirectory());
  return { notes: readJournal(join(path, JOURNAL)), moved: moved.map(({ name }) => name) };
}

/**
 * The notes in a journal. gc finishes writing a journal before it changes any session that the journal lists. So a
 * missing or incomplete journal counts as empty.
 */
function readJournal(path: string): Note[] {
  try {
    const notes: unknown = JSON.parse(readFileSync(path, "utf8"));
    return Array.isArray(notes) ? (notes as Note[]) : [];
  } catch {
    return [];
  }
}

function entriesOf(path: string): Dirent[] {
  return ifThere(() => readdirSync(path, { withFileTypes: true })) ?? [];
}
