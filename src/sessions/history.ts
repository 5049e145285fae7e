import { closeSync } from "node:fs";
import { join } from "node:path";
import { NEVER } from "../base/clock.js";
import { FleetError, quote, systemCode } from "../base/errors.js";
import type { SessionRecord } from "../base/session.js";
import { type HistoryPart, type HistoryPosition, readPart } from "../runtime/history/line.js";
import { promptsSince } from "../runtime/history/session-events.js";
import {
  historyBytes,
  historyState,
  openHistoryFile,
  openHistoryIn,
  sessionFolderPath,
} from "../runtime/history/session-state.js";
import { groupOfSession } from "../servers/server.js";
import { type SessionsContext, sessionLost } from "./problems.js";
import type { PromptHistory } from "./use/open-session.js";
import { recordFor } from "./view.js";

const PART_BYTES = 1024 * 1024;

export interface HistoryRequest {
  id: string;
  /** Must be the owner or a member. */
  user: string;
  /** The position at which the previous part ended. Default: the beginning of the history. */
  from?: HistoryPosition | undefined;
}

/**
 * Reads a part of a session's history on this host, up to a megabyte. Starts no server. Like `resume`, takes the
 * session over if this host should have it.
 *
 * @throws FleetError `FLEET_SESSION_NOT_FOUND`, `FLEET_SESSION_LOST`, `FLEET_SESSION_MOVED`, `FLEET_STORAGE_UNUSABLE`.
 */
export async function readHistory(
  context: SessionsContext,
  { id, user, from }: HistoryRequest,
  signal = NEVER,
): Promise<HistoryPart> {
  const { directory, takeover } = context;
  const record = await takeover.settle(await recordFor(context, id, user), signal);
  await directory.assertStorage();
  const fd = await open(context, record);
  if (fd === null && from === undefined && record.turns > 0) throw sessionLost(record);
  try {
    return readPart(fd, id, from ?? null, PART_BYTES);
  } finally {
    if (fd !== null) closeSync(fd);
  }
}

/** A session, and the server that should have it. */
export type SessionPlace = Pick<SessionRecord, "id" | "serverId" | "owner">;

/**
 * The paths of these sessions' folders on this host, in the same order. A folder may be missing. Null for a session
 * whose server is not known on this host.
 */
export async function historyFolders(
  { store, directory }: Pick<SessionsContext, "store" | "directory">,
  sessions: readonly SessionPlace[],
): Promise<(string | null)[]> {
  const { servers } = await store.registry.read();
  const isRecorded = sessions.every(({ serverId }) => servers[serverId] !== undefined);
  const places = isRecorded ? undefined : await directory.places();
  return sessions.map((session) => {
    const server = servers[session.serverId];
    if (server !== undefined) return sessionFolderPath(server.home, session.id);
    const place = places?.get(groupOfSession(session));
    return place === undefined ? null : join(place, session.id);
  });
}

/** For each session, a text that changes whenever the session's history changes. Costs two system calls per session. */
export async function historyStates(
  context: Pick<SessionsContext, "store" | "directory">,
  sessions: readonly SessionPlace[],
): Promise<string[]> {
  return (await historyFolders(context, sessions)).map((folder) => (folder === null ? "" : historyState(folder)));
}

/**
 * Opens the history. Returns a descriptor; null if there is no history, because the session had no turn or was deleted.
 */
async function open({ store, directory }: SessionsContext, record: SessionRecord): Promise<number | null> {
  const { id, serverId } = record;
  const server = (await store.registry.read()).servers[serverId];
  try {
    if (server !== undefined) return openHistoryFile(server.home, id);
    // After a takeover, this host may have no record of the session's server. Then look in the shared storage.
    const place = (await directory.places()).get(groupOfSession(record));
    return place === undefined ? null : openHistoryIn(place, id);
  } catch (cause) {
    const code = systemCode(cause);
    if (code === undefined) throw cause;
    // The user's own agent may have replaced the file or made it unreadable.
    throw new FleetError("FLEET_SESSION_LOST", `The history of session ${quote(id)} cannot be read (${code}).`, {
      cause,
    });
  }
}

/** The prompts in a session's history on this host, as {@link PromptHistory} describes them. */
export async function readPrompts(
  context: SessionsContext,
  { id, user, fromBytes }: { id: string; user: string; fromBytes?: number | undefined },
): Promise<PromptHistory> {
  const record = await recordFor(context, id, user);
  const server = (await context.store.registry.read()).servers[record.serverId];
  return server === undefined ? { bytes: 0, prompts: [] } : await promptHistory(server.home, id, fromBytes);
}

export async function promptHistory(home: string, id: string, fromBytes: number | undefined): Promise<PromptHistory> {
  const prompts = fromBytes === undefined ? [] : await promptsSince(home, id, fromBytes);
  return { bytes: historyBytes(home, id), prompts };
}
