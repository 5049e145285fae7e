import { randomBytes } from "node:crypto";
import { type FileHandle, mkdir, open, readFile, rename, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { isFleetError, quote, systemCode } from "../errors.js";
import { audited } from "../events/audited.js";
import { validateSessionId } from "../model/ids.js";
import type { ServerRecord } from "../model/server.js";
import type { SessionRecord } from "../model/session.js";
import { titleOf } from "../model/title.js";
import { serverNotFound } from "../pool/pool.js";
import { incomingPath, sync } from "../runtime/files/copy-folder.js";
import { HOME, unwritable } from "../runtime/files/server-folder.js";
import { HISTORY, openSessionState, sessionStatePath } from "../runtime/history/session-state.js";
import { ownIdentity } from "../runtime/process/process-table.js";
import { sessionExists } from "../sessions/problems.js";
import type { Sessions } from "../sessions/sessions.js";
import { invalidArchive, type Manifest } from "./archive/manifest.js";
import { readArchive, sessionOfLine } from "./archive/read.js";
import { Unpacker } from "./archive/unpack.js";

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

/** Checks an entire archive without writing anything. @throws FleetError `FLEET_ARCHIVE_INVALID` */
export async function checkArchive(path: string): Promise<Manifest> {
  await using archive = await openArchive(path);
  return await readArchive(archive);
}

/**
 * Creates a session on this host from an archive. Checks the whole archive before it writes anything, and checks it again while
 * it unpacks.
 *
 * @throws FleetError `FLEET_ARCHIVE_INVALID`, `FLEET_SESSION_EXISTS`; `FLEET_EVENTS_UNWRITABLE`; the errors of
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
