import { randomBytes } from "node:crypto";
import { closeSync, fstatSync, readSync } from "node:fs";
import { type FileHandle, mkdir, open, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { pause } from "../base/clock.js";
import { FleetError, isFleetError, quote, systemCode } from "../base/errors.js";
import { HeldFolder } from "../base/held-folder.js";
import { titleOf, validateSessionId } from "../base/ids.js";
import { ifThereLater } from "../base/if-there.js";
import type { ServerRecord } from "../base/server.js";
import type { SessionRecord } from "../base/session.js";
import { audited } from "../identity/acting.js";
import { incomingPath, sync } from "../runtime/files/copy-folder.js";
import { HOME, unwritable } from "../runtime/files/server-folder.js";
import { HISTORY, openSessionState, sessionStatePath } from "../runtime/history/session-state.js";
import { ownIdentity } from "../runtime/process/process-table.js";
import { serverNotFound } from "../servers/pool.js";
import { groupOfSession } from "../servers/server.js";
import { setUseMarker, type UseMarker } from "../servers/use-markers.js";
import { invalidArchive, type Manifest } from "./archive/manifest.js";
import { readArchive, sessionOfLine } from "./archive/read.js";
import { Unpacker } from "./archive/unpack.js";
import { type Written, writeArchive } from "./archive/write.js";
import { type SessionsContext, sessionBusy, sessionExists, sessionLost, sessionNotFound } from "./problems.js";
import type { Sessions } from "./sessions.js";
import { heldPermit, type PermitRequest, WAIT_MS } from "./use/permit.js";
import { recordFor } from "./view.js";

/** How many bytes of an archive one call between hosts transfers. */
export const PART_BYTES = 1024 ** 2;
/** An archive that nobody has written to for this long, in milliseconds, counts as left by a killed process. */
const LEFT_MS = 3_600_000;
const NAME = /^[0-9a-f]{32}$/;

/** The archives on this host that are on their way to or from another host. */
export class ArchivesUnderWay {
  readonly #folder: string;

  constructor(stateRoot: string) {
    this.#folder = join(stateRoot, "archives");
  }

  /** A name for a new archive. Also removes archives that killed processes left. */
  async newName(): Promise<string> {
    await mkdir(this.#folder, { mode: 0o700, recursive: true });
    for (const name of await readdir(this.#folder)) {
      const path = join(this.#folder, name);
      const stats = await ifThereLater(async () => await stat(path));
      if (stats !== null && stats.mtimeMs < Date.now() - LEFT_MS) await rm(path, { force: true, recursive: true });
    }
    return randomBytes(16).toString("hex");
  }

  /** @throws FleetError `FLEET_USAGE_INVALID` when the name does not have the form of the names from {@link newName} */
  pathOf(name: string): string {
    if (NAME.test(name)) return join(this.#folder, name);
    throw new FleetError("FLEET_USAGE_INVALID", `${quote(name)} is not the name of an archive.`);
  }

  /** Returns at most {@link PART_BYTES} bytes; an empty buffer at the end of the archive. */
  async read(name: string, offset: number): Promise<Buffer> {
    const file = await open(this.pathOf(name), "r");
    try {
      const { buffer, bytesRead } = await file.read(Buffer.alloc(PART_BYTES), 0, PART_BYTES, offset);
      return buffer.subarray(0, bytesRead);
    } finally {
      await file.close();
    }
  }

  async write(name: string, offset: number, bytes: Buffer): Promise<void> {
    const file = await open(this.pathOf(name), offset === 0 ? "wx" : "r+", 0o600);
    try {
      await file.write(bytes, 0, bytes.length, offset);
    } finally {
      await file.close();
    }
  }

  async remove(name: string): Promise<void> {
    await rm(this.pathOf(name), { force: true });
  }
}

/** How long to wait for the last line of a history, and how often to check, in milliseconds. */
const LINE_MS = 2_000;
const LINE_POLL_MS = 20;

export interface ExportRequest {
  id: string;
  /** Must be the owner. */
  user: string;
  waitMs?: number | undefined;
  signal: AbortSignal;
}

/**
 * Writes the archive of a session of this host to a new file. Waits until no turn runs, and makes new turns wait during
 * the export. Starts no server.
 *
 * @throws FleetError `FLEET_SESSION_NOT_FOUND`, also for a member; `FLEET_SESSION_LOST`, `FLEET_SESSION_LOCKED`,
 * `FLEET_SESSION_BUSY`, `FLEET_CONTENT_TOO_LARGE`, `FLEET_EVENTS_UNWRITABLE`.
 */
export async function exportHere(
  context: SessionsContext,
  path: string,
  { id, user, waitMs, signal }: ExportRequest,
): Promise<Written> {
  const { takeover, directory } = context;
  const found = await recordFor(context, id, user);
  if (found.owner !== user) throw sessionNotFound(id);
  await takeover.settle(found, signal);
  await directory.assertStorage();
  return await betweenTurns(context, found, { user, waitMs, signal }, async () => {
    // Read the record again, because a turn may have ended during the wait, or the session may have moved.
    const record = await takeover.settle(await recordFor(context, id, user), signal);
    using folder = await folderOf(context, record);
    if (record.turns > 0 && folder?.lstat(HISTORY) === undefined) throw sessionLost(record);
    if (folder !== null) await awaitLine(folder, signal);
    // The audit log must name each conversation that leaves the fleet.
    const about = { type: "session.exported", user, sessionId: id, serverId: record.serverId } as const;
    return await audited(context.events, about, async () => await writeArchive(path, record, folder));
  });
}

/** The session's folder. Null if it does not exist, because the session had no turn. */
async function folderOf({ store, directory }: SessionsContext, record: SessionRecord): Promise<HeldFolder | null> {
  const server = (await store.registry.read()).servers[record.serverId];
  if (server === undefined) {
    // After a takeover, this host may have no record of the session's server. Then look in the shared storage.
    const place = (await directory.places()).get(groupOfSession(record));
    return place === undefined ? null : HeldFolder.open(join(place, record.id));
  }
  using state = openSessionState(server.home);
  return state?.folder(record.id) ?? null;
}

/**
 * Waits up to {@link LINE_MS} until the history ends with a complete line, because after a turn, the server may still
 * be writing the last line.
 */
async function awaitLine(folder: HeldFolder, signal: AbortSignal): Promise<void> {
  const until = performance.now() + LINE_MS;
  while (!endsWithLine(folder) && performance.now() < until) await pause(LINE_POLL_MS, signal);
}

function endsWithLine(folder: HeldFolder): boolean {
  const fd = folder.file(HISTORY);
  if (fd === null) return true;
  try {
    const last = Buffer.alloc(1);
    const { size } = fstatSync(fd);
    return size === 0 || (readSync(fd, last, 0, 1, size - 1) === 1 && last[0] === 0x0a);
  } finally {
    closeSync(fd);
  }
}

const POLL_MS = 5;

/**
 * Runs `work` while no turn runs in a session. Like a turn, waits for the turn in progress, and makes later turns wait.
 * Starts no server.
 *
 * @throws FleetError `FLEET_SESSION_LOCKED` or `FLEET_SESSION_BUSY` when other uses of the session do not end within
 * `waitMs`.
 */
export async function betweenTurns<T>(
  context: SessionsContext,
  found: SessionRecord,
  request: PermitRequest,
  work: (record: SessionRecord) => Promise<T>,
): Promise<T> {
  await using permit = await heldPermit(context, found, request);
  const { record, lease } = permit;
  const server = (await context.store.registry.read()).servers[record.serverId];
  const { waitMs = WAIT_MS, signal } = request;
  const until = performance.now() + waitMs;
  // A turn in a private session may run without a lease, so that only its use marker shows it. Set a marker, and wait
  // until it is the only one. A later turn finds this marker, and waits for the lease.
  using marker: UseMarker | null | undefined = server && (await setUseMarker(server, record.id, { waitMs, signal }));
  if (marker === null) throw sessionBusy(record.id);
  while (marker?.isShared() === true) {
    if (performance.now() > until) throw sessionBusy(record.id);
    await pause(POLL_MS, signal);
  }
  const result = await work(record);
  await lease.check();
  return result;
}

/** The file in which the runtime describes a session's folder. */
const WORKSPACE = "workspace.yaml";
/** The runtime writes less than a kilobyte. */
const MOST_WORKSPACE_BYTES = 1024 * 1024;

export interface ImportRequest {
  /** The owner of the new session. */
  user: string;
  /** Default: the id that the session had. */
  id?: string | undefined;
  signal: AbortSignal;
}

/** Checks an entire archive without writing anything. @throws FleetError `FLEET_USAGE_INVALID` */
export async function checkArchive(path: string): Promise<Manifest> {
  await using archive = await openArchive(path);
  return await readArchive(archive);
}

/**
 * Creates a session on this host from an archive. Checks the whole archive before it writes anything, and checks it
 * again while it unpacks.
 *
 * @throws FleetError `FLEET_USAGE_INVALID`, `FLEET_SESSION_EXISTS`; `FLEET_EVENTS_UNWRITABLE`; the errors of
 * `Sessions.recordNew`.
 */
export async function importHere(sessions: Sessions, path: string, request: ImportRequest): Promise<SessionRecord> {
  await using archive = await openArchive(path);
  const manifest = await readArchive(archive);
  const { purpose, title, model, tools, ttlMs, turns } = manifest.session;
  const id = validateSessionId(request.id ?? manifest.session.id);
  const hasHistory = manifest.files.some((file) => file.path === HISTORY);
  const wanted = {
    id,
    owner: request.user,
    purpose: purpose ?? undefined,
    title: titleOf(title ?? "") ?? undefined,
    model,
    tools: tools ?? undefined,
    ttlMs: ttlMs ?? undefined,
    // Record at least one turn, because a session with turns cannot be used without its history. So nobody uses the
    // session before its files are in place.
    turns: hasHistory ? Math.max(turns, 1) : 0,
  };
  const record = await sessions.recordNew(wanted, { signal: request.signal });
  try {
    const server = (await sessions.context.store.registry.read()).servers[record.serverId];
    if (server === undefined) throw serverNotFound(`server ${quote(record.serverId)}`);
    const about = { type: "session.imported", user: request.user, sessionId: id, serverId: record.serverId } as const;
    await audited(sessions.context.events, about, async () => {
      if (hasHistory) await place(archive, server, record, request.signal);
    });
    return record;
  } catch (error) {
    await sessions.context.store.sessions.delete(id).catch(() => "gc deletes it");
    throw error;
  }
}

async function openArchive(path: string): Promise<FileHandle> {
  try {
    return await open(path, "r");
  } catch (cause) {
    const code = systemCode(cause);
    if (code === undefined) throw cause;
    throw invalidArchive(`${quote(path)} cannot be read (${code})`, [], cause);
  }
}

/** Unpacks the archive beside the server's sessions, and then moves the session to its place with one rename. */
async function place(
  archive: FileHandle,
  server: ServerRecord,
  { id, owner }: SessionRecord,
  signal: AbortSignal,
): Promise<void> {
  const { home } = server;
  await makeStateFolder(home);
  using state = openSessionState(home);
  if (state === null) throw unwritable(sessionStatePath(home), new Error("it is not a folder of the fleet"));
  const staging = stagingFor(state.realPath);
  try {
    const unpacker = new Unpacker(staging, signal);
    const manifest = await readArchive(archive, unpacker);
    await adapt(staging, manifest, { id, home });
    await unpacker.sync(manifest);
    await rename(staging, state.at(id));
    await sync(state.at(""));
  } catch (error) {
    await rm(staging, { recursive: true, force: true });
    const code = systemCode(error) ?? "";
    if (["ENOTEMPTY", "EEXIST", "ENOTDIR"].includes(code)) throw sessionExists(id, owner, null);
    throw code === "" || isFleetError(error) ? error : unwritable(staging, error);
  }
}

async function makeStateFolder(home: string): Promise<void> {
  await mkdir(sessionStatePath(home), { mode: 0o700 }).catch((error: unknown) => {
    if (systemCode(error) !== "EEXIST") throw unwritable(home, error);
  });
}

/**
 * The path for a new folder on the same disk as the sessions. It is not in the home, because the user's agent could
 * change the files there. gc removes the folder if this process is killed.
 */
function stagingFor(statePath: string): string {
  const group = dirname(statePath);
  if (basename(group) !== HOME) return incomingPath(group);
  const { pid, startTicks } = ownIdentity();
  return join(dirname(dirname(group)), `.incoming-${pid}-${startTicks}-${randomBytes(4).toString("hex")}`);
}

/**
 * Replaces the values that the runtime compares with the session's id and folder: the id in the first line of the
 * history and in `workspace.yaml`, and the folder in `workspace.yaml`. Leaves everything else as it was, byte for byte.
 */
async function adapt(folder: string, { session, files }: Manifest, { id, home }: { id: string; home: string }) {
  if (id !== session.id) {
    await rewriteBeginning(join(folder, HISTORY), (line) => {
      if (sessionOfLine(line) !== session.id) return line;
      const event = JSON.parse(line) as { data: { sessionId: string } };
      event.data.sessionId = id;
      return JSON.stringify(event);
    });
  }
  const workspace = files.find(({ path }) => path === WORKSPACE);
  if (workspace === undefined) return;
  if (workspace.bytes > MOST_WORKSPACE_BYTES)
    throw invalidArchive(`its file ${WORKSPACE} has more than ${MOST_WORKSPACE_BYTES} bytes`);
  const path = join(folder, WORKSPACE);
  const lines = (await readFile(path, "utf8")).split("\n");
  const adapted = lines.map((line) => {
    if (line === `id: ${session.id}`) return `id: ${id}`;
    return line.startsWith("cwd: ") ? `cwd: ${home}` : line;
  });
  await replace(path, Buffer.from(adapted.join("\n")));
}

async function rewriteBeginning(path: string, change: (line: string) => string): Promise<void> {
  const bytes = await readFile(path);
  const end = bytes.indexOf("\n");
  if (end === -1) return;
  const line = change(bytes.toString("utf8", 0, end));
  await replace(path, Buffer.concat([Buffer.from(line), bytes.subarray(end)]));
}

async function replace(path: string, bytes: Buffer): Promise<void> {
  await writeFile(path, bytes, { mode: 0o600, flush: true });
}
