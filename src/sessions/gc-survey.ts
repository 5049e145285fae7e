import { readdirSync, realpathSync } from "node:fs";
import { join } from "node:path";
import { setImmediate as yieldToOthers } from "node:timers/promises";
import { systemCode } from "../errors.js";
import { groupOfSession } from "../pool/server.js";
import { isRuntimeFolder, sessionStatePath } from "../runtime/session-state.js";
import type { Registry, ServerRecord, SessionRecord, Store } from "../store/store.js";
import { type HostsSeen, isAbandoned, lastUseOf, measureFolder, ttlOf } from "./gc-age.js";
import { type Business, type Note, unfinishedBusiness } from "./gc-run.js";

/** A folder that holds sessions' folders. Several shared servers have the same one. */
export interface StateFolder {
  /** With all links resolved. */
  path: string;
  servers: ServerRecord[];
  /** Whose the sessions in it are that no record knows; null: nobody knows. */
  owner: string | null;
}

/** A session past its TTL. */
export interface Candidate {
  id: string;
  owner: string | null;
  /** Null: no record knows it. */
  record: SessionRecord | null;
  /** The state folder that it should be in; null when there is none. */
  state: StateFolder | null;
  /** Its own folder; null when it has none. */
  path: string | null;
  /** Where fleets mark its use. */
  server: ServerRecord | null;
  ageMs: number;
  bytes: number;
}

export interface Survey {
  states: StateFolder[];
  records: SessionRecord[];
  candidates: Candidate[];
  /** What other gcs had in hand in each state folder. */
  business: ReadonlyMap<StateFolder, Business>;
}

export interface SurveyOptions {
  ttlMs: number;
  /** Only this owner's sessions. */
  user: string | undefined;
  nowMs: number;
  hosts: HostsSeen;
  /** Whether a session is this host's. What is another's is that one's to delete. */
  isOwn: (record: SessionRecord) => boolean;
  /** The state folders of this host in the shared storage, by the groups of servers. */
  places: ReadonlyMap<string, string>;
}

/** Any other folder is not a session's. */
const SESSION_ID = /^[A-Za-z0-9._-]{1,128}$/;
/** Looking is synchronous: after this many sessions everything else in the process gets its turn. */
const LOOKS_AT_ONCE = 50;

/**
 * Finds every session past its TTL, from the records and the disk together: the runtime's own list hides sessions that
 * never had a turn. Changes nothing.
 */
export async function survey(store: Store, stateRoot: string, options: SurveyOptions): Promise<Survey> {
  // In this order: a session is recorded before its folder is made, so none can look unrecorded that is not.
  const registry = await store.readRegistry();
  const all = await store.listSessions();
  const records = all.filter(options.isOwn);
  const foreign = new Map(all.filter((record) => !options.isOwn(record)).map((record) => [record.id, record]));
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
    const folders = new Set(folderNames(state.path).filter((name) => SESSION_ID.test(name) && !isRuntimeFolder(name)));
    for (const record of recorded.values())
      if (!folders.has(record.id)) found.push(recordOnly(record, state, registry));
    for (const id of folders) {
      // It may be on its way to the host that its record names, or was left here when it went.
      const elsewhere = foreign.get(id);
      if (elsewhere !== undefined && (state.owner === null || state.owner === elsewhere.owner)) continue;
      const record = recorded.get(id) ?? null;
      const path = join(state.path, id);
      const server = record === null ? (state.servers[0] ?? null) : (registry.servers[record.serverId] ?? null);
      found.push({ id, owner: record?.owner ?? state.owner, record, state, path, server, ageMs: 0, bytes: 0 });
    }
  }
  const business = new Map(states.map((state) => [state, unfinishedBusiness(state.path)]));
  const candidates: Candidate[] = [];
  for (const [index, session] of found.entries()) {
    if (index % LOOKS_AT_ONCE === LOOKS_AT_ONCE - 1) await yieldToOthers();
    if (options.user !== undefined && session.owner !== options.user) continue;
    const { taken, noted } = (session.state && business.get(session.state)) ?? { taken: new Set(), noted: new Map() };
    if (taken.has(session.id)) continue; // another gc is at it
    const candidate = judge(session, options, noted.get(session.id));
    if (candidate !== null) candidates.push(candidate);
  }
  return { states, records, candidates, business };
}

/** The session with its age and size if it is past its TTL, or null. */
function judge(session: Candidate, { ttlMs, nowMs, hosts }: SurveyOptions, note: Note | undefined): Candidate | null {
  const { record, path } = session;
  // What a gc that was killed had begun to delete is due, unless somebody has used it since.
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
 * Every state folder there is: of recorded servers, of folders below `servers/` that no record knows, and those in the shared
 * storage, where sessions were brought whose server has not been started here. Which session is in which goes by its server's
 * id, known or not.
 */
function stateFolders(
  { servers }: Registry,
  stateRoot: string,
  places: ReadonlyMap<string, string>,
): { states: StateFolder[]; stateOf: (record: SessionRecord) => StateFolder | undefined } {
  const byPath = new Map<string, StateFolder>();
  const byServer = new Map<string, StateFolder>();
  const byGroup = new Map<string, StateFolder>();
  const stateAt = (path: string): StateFolder | null => {
    const real = realPathIfThere(path);
    if (real === null) return null;
    const state = byPath.get(real) ?? { path: real, servers: [], owner: null };
    byPath.set(real, state);
    return state;
  };
  const add = (path: string, id: string, server: ServerRecord | undefined) => {
    const state = stateAt(path);
    if (state === null) return;
    byServer.set(id, state);
    if (server !== undefined) state.servers.push(server);
  };
  for (const server of Object.values(servers)) add(sessionStatePath(server.home), server.id, server);
  for (const [group, path] of places) {
    const state = stateAt(path);
    if (state !== null) byGroup.set(group, state);
  }
  const folder = join(stateRoot, "servers");
  for (const name of folderNames(folder)) {
    if (servers[name] !== undefined || name.startsWith(".")) continue;
    add(sessionStatePath(join(folder, name, "home")), name, undefined);
    add(sessionStatePath(join(folder, name)), name, undefined); // what shared servers have in common
  }
  for (const state of byPath.values()) {
    const [server, ...others] = state.servers;
    if (others.length === 0) state.owner = server?.user ?? null;
  }
  const stateOf = (record: SessionRecord) => byGroup.get(groupOfSession(record)) ?? byServer.get(record.serverId);
  return { states: [...byPath.values()], stateOf };
}

function realPathIfThere(path: string): string | null {
  try {
    return realpathSync(path);
  } catch (error) {
    const code = systemCode(error);
    if (code === "ENOENT" || code === "ENOTDIR") return null;
    throw error;
  }
}

function folderNames(path: string): string[] {
  try {
    return readdirSync(path, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map(({ name }) => name);
  } catch (error) {
    if (systemCode(error) === "ENOENT") return [];
    throw error;
  }
}
