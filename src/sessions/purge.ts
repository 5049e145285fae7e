import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { concealInEvents, Pseudonyms } from "../accounts/audit/pseudonyms.js";
import { pause } from "../base/clock.js";
import { isFleetError } from "../base/errors.js";
import { removeIfThere } from "../base/held-folder.js";
import { serverIdOf } from "../base/ids.js";
import { ifThere } from "../base/if-there.js";
import type { SessionRecord } from "../base/session.js";
import { revokeTokens } from "../identity/tokens.js";
import { HOME, serverFolder } from "../runtime/files/server-folder.js";
import { chatHistoryPath, removePlacesOf, removeTakenOf } from "../runtime/files/shared-storage.js";
import { listSessionFolders, sessionBytes } from "../runtime/history/session-state.js";
import { networkFolder, SERVERS_FOLDER } from "../sandbox/network/egress.js";
import { isRunning } from "../servers/server.js";
import { scratchName } from "../store/file/durable.js";
import { abortTurnIn, deleteSessionState } from "./delete.js";
import { measureFolder } from "./gc/survey.js";
import { moveAway, sweepServers } from "./gc/unused-servers.js";
import type { SessionsContext } from "./problems.js";
import { removeBlocks } from "./remains.js";
import type { Sessions } from "./sessions.js";

/** How long a session may stay in a turn after the turn was aborted, in milliseconds. */
const TURN_MS = 10_000;
const TURN_POLL_MS = 50;
/** How long an event may wait in a process before it is written, in milliseconds. */
const LATE_EVENTS_MS = 300;
/** The holder that takes over the user's leases. It is not a valid user id, so no session can belong to it. */
const ERASED = "~";
const PLACE_MS = 3_000;

const STEPS: Readonly<Record<PurgeStep, (erasing: Erasing) => Promise<void>>> = {
  servers: stopServers,
  sessions: eraseSessions,
  homes: forgetServers,
  folders: removeFolders,
  members: leaveSessionsOfOthers,
  records: deleteRecords,
  // This step comes late, because by now the turns that the purge aborted have logged that they ended.
  logs: pseudonymizeLogs,
  older: forgetOlder,
};

/**
 * Erases the user's data on this host. The purge must already be recorded, so that the user cannot start anything new.
 * Can be repeated at any time, even after it was killed.
 */
export async function purgeHere(context: PurgeContext, user: string): Promise<Purged> {
  const { sessions, onStep, signal } = context;
  const { store, directory } = sessions.context;
  const total: Purged = { sessions: 0, servers: 0, tokens: 0, bytes: 0, remains: [] };
  const purge = await store.purges.read(user);
  const doneElsewhereAt = purge?.partlyDone === true ? Date.parse(purge.begunAt) : null;
  const listed = purge?.sessions ?? [];
  const erasing: Erasing = { ...context, user, store, total, moved: null, ids: listed, doneElsewhereAt };
  await directory.assertStorage();
  const done: readonly PurgeStep[] = doneElsewhereAt === null ? [] : ["members", "records"];
  for (const [step, work] of Object.entries(STEPS) as [PurgeStep, (typeof STEPS)[PurgeStep]][]) {
    signal.throwIfAborted();
    await onStep?.(step);
    if (!done.includes(step)) await work(erasing);
  }
  total.remains.push(...stillNamed(context.stateRoot, directory.own, user));
  return total;
}

/** Counts the sessions, servers and bytes that {@link purgeHere} would erase. Does not count tokens. */
export async function foreseePurge({ sessions, stateRoot }: PurgeContext, user: string): Promise<Purged> {
  const { store, directory } = sessions.context;
  const { servers } = await store.registry.read();
  const holds = await directory.holds();
  const records = (await store.sessions.list(() => undefined)).filter(({ owner }) => owner === user).filter(holds);
  const shared = records.filter(({ serverId }) => serverId !== serverIdOf(user));
  const inShared = shared.map(({ id, serverId }) => bytesOf(servers[serverId]?.home, id));
  return {
    sessions: records.length,
    servers: Object.values(servers).filter((server) => server.user === user).length,
    tokens: 0,
    bytes: folderBytes(serverFolder(stateRoot, serverIdOf(user))) + inShared.reduce((sum, bytes) => sum + bytes, 0),
    remains: [],
  };
}

async function stopServers({ sessions, store, user, signal }: Erasing): Promise<void> {
  const { pool, clients } = sessions.context;
  const { servers } = await store.registry.read();
  const ids = Object.values(servers)
    .filter((server) => server.user === user)
    .map(({ id }) => id);
  await pool.stopAll(ids, { drainTimeoutMs: 0, force: true, signal });
  for (const id of ids) await clients.close(id);
}

async function eraseSessions(erasing: Erasing): Promise<void> {
  const { sessions, store, user, total } = erasing;
  const { servers } = await store.registry.read();
  const records = (await store.sessions.list(() => undefined)).filter((record) => isErased(erasing, record));
  const own = servers[serverIdOf(user)];
  const found = own === undefined ? [] : listSessionFolders(own.home);
  // Users may put personal data into session ids, so replace the ids in the logs, too. Do that before the sessions are
  // deleted, because the ids cannot be found after that. Another host may already have erased sessions and their
  // records, so use the ids in the record of the purge, too.
  erasing.ids = [...new Set([...erasing.ids, ...records.map(({ id }) => id), ...found])];
  erasing.ids = await idsToErase(erasing);
  await pseudonymize(erasing, erasing.ids);
  for (const record of records) {
    if (!(await isHere(erasing, record))) continue;
    total.bytes += bytesOf(servers[record.serverId]?.home, record.id);
    await eraseSession(erasing, record);
    total.sessions++;
    const { shared } = sessions.context.config.storage;
    const host = sessions.context.directory.own;
    if (shared !== null && host !== null) await removeTakenOf(shared, await hostsToClear(erasing, host), record.id);
  }
  // Remove the folders of sessions without a record, and the notes in `open/`, which mark sessions that are probably
  // loaded. Remove them for all ids, because a note stays here when another host takes its session over.
  const ids = new Set(await idsToErase(erasing));
  for (const server of Object.values(servers).filter((each) => each.user === null)) {
    for (const id of listSessionFolders(server.home).filter((each) => ids.has(each)))
      if ((await store.sessions.read(id)) === null)
        await deleteSessionState(server, id, sessions.context.config.health.timeoutMs);
    const notes = join(dirname(server.home), "open");
    const left = (ifThere(() => readdirSync(notes)) ?? []).filter((id) => ids.has(id));
    for (const id of left) rmSync(join(notes, id), { force: true });
  }
}

/**
 * Whether the purge erases a session. If this host comes back weeks after the purge, the user may have begun again: the
 * sessions from after the purge stay.
 */
function isErased({ user, doneElsewhereAt }: Erasing, { owner, createdAt }: SessionRecord): boolean {
  return owner === user && !(doneElsewhereAt !== null && Date.parse(createdAt) > doneElsewhereAt);
}

/**
 * The ids of the sessions to erase, without those of sessions that began later. A host may erase its part weeks after
 * the others, and anybody may use the id of an erased session again.
 */
async function idsToErase(erasing: Erasing): Promise<string[]> {
  const { store, ids } = erasing;
  const others = new Set<string>();
  const records = await store.sessions.list((unreadable) => void others.add(unreadable));
  for (const record of records) if (!isErased(erasing, record)) others.add(record.id);
  return ids.filter((id) => !others.has(id));
}

/** Whether this host has the session, or should take it over. Another host erases its own sessions. */
async function isHere({ sessions }: Erasing, record: SessionRecord): Promise<boolean> {
  try {
    return (await sessions.context.directory.whereIs(record)).here;
  } catch (error) {
    if (isFleetError(error)) return false;
    throw error;
  }
}

async function eraseSession({ sessions, user, signal }: Erasing, { id }: SessionRecord): Promise<void> {
  const until = performance.now() + TURN_MS;
  for (;;) {
    try {
      await sessions.end(id, "purge");
      return;
    } catch (error) {
      // On a shared server, the session may be in a turn. Abort that turn, and try again.
      if (!isFleetError(error, "FLEET_SESSION_BUSY") || performance.now() > until) throw error;
    }
    await abortTurnIn(sessions.context, id, user).catch((error: unknown) => {
      if (!isFleetError(error)) throw error;
    });
    await pause(TURN_POLL_MS, signal);
  }
}

/** Records the purge as an event, and replaces names in the ledger and in the logs. */
async function pseudonymizeLogs(erasing: Erasing): Promise<void> {
  const { sessions, store, user, stateRoot, signal } = erasing;
  const pseudonyms = await Pseudonyms.open(stateRoot, store);
  await sessions.context.events.record({ type: "user.purged", user: pseudonyms.of(user) });
  // Wait until other processes of this host have written their last events.
  await pause(LATE_EVENTS_MS, signal);
  await pseudonymize(erasing, await idsToErase(erasing));
}

/** Replaces the names of the user, of the user's server and of these sessions in the ledger and in this host's logs. */
async function pseudonymize(
  { store, user, stateRoot, doneElsewhereAt }: Erasing,
  ids: readonly string[],
): Promise<void> {
  const pseudonyms = await Pseudonyms.open(stateRoot, store);
  const withPseudonym = (names: readonly string[]) => new Map(names.map((name) => [name, pseudonyms.of(name)]));
  // If the user has begun again, the ledger keeps the name.
  if (doneElsewhereAt === null || (await store.placements.read(user)) === null)
    await store.usage.rename({ users: withPseudonym([user]), sessions: withPseudonym(ids) });
  const names = [serverIdOf(user), ...ids];
  await concealInLogs(stateRoot, withPseudonym([user, ...names]));
  await concealInEvents(stateRoot, { user, names }, pseudonyms);
}

async function forgetServers(erasing: Erasing): Promise<void> {
  const { stateRoot, store, user, total } = erasing;
  const id = serverIdOf(user);
  const folder = serverFolder(stateRoot, id);
  total.bytes += folderBytes(folder);
  // Delete the record first: without a record, gc removes the folder if this process is killed.
  total.servers += await store.registry.update(({ servers }) => {
    const own = Object.values(servers).filter((server) => server.user === user && !isRunning(server));
    for (const server of own) delete servers[server.id];
    return own.length;
  });
  erasing.moved = moveAway(stateRoot, id);
}

async function removeFolders(erasing: Erasing): Promise<void> {
  const { sessions, stateRoot, user, total, moved } = erasing;
  const { config, directory } = sessions.context;
  if (moved !== null) await removeIfThere(moved);
  // An earlier purge may have been killed after it moved the folder.
  await sweepServers(stateRoot);
  rmSync(chatHistoryPath(stateRoot, user), { force: true });
  const { shared } = config.storage;
  if (shared !== null && directory.own !== null) {
    const hosts = await hostsToClear(erasing, directory.own);
    total.bytes += await removePlacesOf(shared, hosts, serverIdOf(user));
    const ids = new Set(await idsToErase(erasing));
    if (ids.size > 0) await removeBlocks(sessions.context, directory.own, (id) => ids.has(id));
  }
}

/**
 * The hosts whose folders in the shared storage this host clears: itself, and the hosts that are gone. The hosts that
 * are alive clear their own folders. Clears only its own if the user may have begun again.
 */
async function hostsToClear({ sessions, doneElsewhereAt }: Erasing, own: string): Promise<string[]> {
  if (doneElsewhereAt !== null) return [own];
  const gone = (await sessions.context.directory.list()).filter((host) => host.gone && host.name !== own);
  return [own, ...gone.map(({ name }) => name)];
}

/** Ends the user's memberships in sessions of other users, and the user's leases. */
async function leaveSessionsOfOthers({ store, user }: Erasing): Promise<void> {
  for (const { id, members } of await store.sessions.list(() => undefined)) {
    if (members.includes(user)) {
      const leave = (draft: SessionRecord) => {
        draft.members = draft.members.filter((member) => member !== user);
      };
      await store.sessions.update(id, leave).catch((error: unknown) => {
        if (!isFleetError(error, "FLEET_SESSION_NOT_FOUND")) throw error; // deleted since the listing
      });
    }
    if ((await store.leases.read(id))?.holder !== user) continue;
    const token = randomBytes(32).toString("hex");
    const steal = { reason: "The data of the holder is being erased." };
    await store.leases.acquire({ sessionId: id, holder: ERASED, token, ttlMs: PLACE_MS, placeMs: PLACE_MS, steal });
    await store.leases.release(id, token);
  }
}

async function deleteRecords({ store, user, total }: Erasing): Promise<void> {
  total.tokens += (await revokeTokens(store, { user })).length;
  for (const { key } of await store.keyedTurns.list(user)) await store.keyedTurns.delete(user, key);
  await store.placements.delete(user);
  await store.limits.forget(user);
}

export async function forgetOlder({ store, user }: Pick<Erasing, "store" | "user">): Promise<void> {
  await store.forgetOlder([JSON.stringify(user), serverIdOf(user)]);
}

function bytesOf(home: string | undefined, id: string): number {
  return home === undefined ? 0 : sessionBytes(home, id);
}

function folderBytes(folder: string): number {
  const measured = measureFolder(folder, Number.POSITIVE_INFINITY);
  return typeof measured === "string" ? 0 : measured.bytes;
}

/** A part of a user's data that a purge could not erase. */
export interface Remain {
  /** Null in a fleet on one host. */
  host: string | null;
  what: string;
  why: string;
}

/** The data that a purge erased on one host. */
export interface Purged {
  sessions: number;
  servers: number;
  tokens: number;
  /** The bytes of the files that were erased. */
  bytes: number;
  remains: Remain[];
}

/** The steps of a purge on one host, in their order. Each step can be repeated. */
export const PURGE_STEPS = ["servers", "sessions", "homes", "folders", "members", "records", "logs", "older"] as const;
export type PurgeStep = (typeof PURGE_STEPS)[number];

export interface PurgeContext {
  sessions: Sessions;
  stateRoot: string;
  signal: AbortSignal;
  /** Called before each step. Tests use it to kill the process at that point. */
  onStep?: ((step: PurgeStep) => void | Promise<void>) | undefined;
}

export interface Erasing extends PurgeContext {
  user: string;
  store: SessionsContext["store"];
  total: Purged;
  /** The ids of the user's sessions. Processes that used them may still write events about them during the purge. */
  ids: readonly string[];
  /**
   * When the purge began (Unix time in ms), if another host has already erased its part and what belongs to no host.
   * The user may have begun again since then.
   */
  doneElsewhereAt: number | null;
  /** The path to which the folder of the user's own server was moved; null if there is none. */
  moved: string | null;
}

/** The logs in which the proxy of restricted networks lists the requests that it refused. */
const EGRESS_LOGS = ["egress.log", "egress.log.1"];

/** Replaces names in the logs of the servers' proxy. Removes the proxy's rule files that contain one of the names. */
export async function concealInLogs(stateRoot: string, names: ReadonlyMap<string, string>): Promise<void> {
  const folder = networkFolder(stateRoot);
  for (const log of EGRESS_LOGS) conceal(folder, log, names);
  const rules = join(folder, SERVERS_FOLDER);
  for (const name of ifThere(() => readdirSync(rules)) ?? []) {
    const text = ifThere(() => readFileSync(join(rules, name), "utf8")) ?? "";
    if ([...names.keys()].some((each) => text.includes(JSON.stringify(each))))
      rmSync(join(rules, name), { force: true });
  }
}

/**
 * Replaces names in one log. The proxy opens the log again for each line, so it writes later lines to the new file. A
 * line that it adds during the replacement may be lost.
 */
function conceal(folder: string, log: string, names: ReadonlyMap<string, string>): void {
  const path = join(folder, log);
  const before = ifThere(() => readFileSync(path, "utf8"));
  if (before === null) return;
  let after = before;
  for (const [name, pseudonym] of names) after = after.replaceAll(JSON.stringify(name), JSON.stringify(pseudonym));
  if (after === before) return;
  const temporary = join(folder, scratchName("tmp"));
  writeFileSync(temporary, after, { mode: 0o600, flag: "wx", flush: true });
  renameSync(temporary, path);
}

const MOST_FILES = 20_000;
const LARGEST = 16 * 1024 ** 2;
/**
 * Not searched: what the agents of other users can write, which are their homes and the sessions of the shared servers.
 */
const SKIPPED = new Set([HOME, "session-state"]);
/**
 * Databases, from which the purge has already erased the user. One of them has the record of the purge itself. A
 * process that reads such a file without SQLite loses its locks on it (sqlite.org/howtocorrupt.html, section 2.2).
 */
const DATABASE = /\.db(-wal|-shm|\.copy)?$/;

/** The files in the state folder that still name the user, for the result of the purge. */
export function stillNamed(stateRoot: string, host: string | null, user: string): Remain[] {
  const texts = [JSON.stringify(user), serverIdOf(user)];
  const found: string[] = [];
  let left = MOST_FILES;
  const visit = (folder: string) => {
    for (const entry of ifThere(() => readdirSync(folder, { withFileTypes: true })) ?? []) {
      if (left-- <= 0) return;
      const path = join(folder, entry.name);
      if (entry.isDirectory() && !SKIPPED.has(entry.name)) visit(path);
      else if (entry.isFile() && !DATABASE.test(entry.name) && isNaming(path, texts)) found.push(path);
    }
  };
  visit(stateRoot);
  return found.map((path) => ({
    host,
    what: `the file ${relative(stateRoot, path)} in the state folder`,
    why: "It names the user. The fleet does not know whose file it is.",
  }));
}

function isNaming(path: string, texts: readonly string[]): boolean {
  const size = statSync(path, { throwIfNoEntry: false })?.size ?? 0;
  const bytes = size > 0 && size <= LARGEST ? ifThere(() => readFileSync(path)) : null;
  return bytes !== null && texts.some((text) => bytes.includes(text));
}
