import type { ServerRecord } from "../../model/server.js";
import type { SessionRecord } from "../../model/session.js";
import { isRunning } from "../../pool/server.js";
import { setEvictionMarker } from "../../pool/use-markers.js";
import { RawConnection } from "../../runtime/client/raw-connection.js";
import { pause } from "../../runtime/clock.js";
import { isLoadedBy } from "../../runtime/history/session-state.js";
import { provenEndpoint } from "../../runtime/process/probe.js";
import { sessionsOfThisHost } from "../../store/of-this-host.js";
import type { Store } from "../../store/ports.js";
import { type EvictionContext, type KeptReason, unloadIdle } from "./eviction.js";

export interface ReleaseContext extends EvictionContext {
  /** If it aborts, the wait for sessions in use ends, and the call rejects. */
  signal?: AbortSignal | undefined;
}

export interface Released {
  released: string[];
  /** Sessions that stay on this host, where they can be used as before. */
  kept: { id: string; reason: KeptReason }[];
}

const RETRY_MS = 100;

/**
 * Releases a user's sessions on this host: unloads each one between its turns, and records that any host with the same
 * storage may take it. Waits for sessions that are in use.
 *
 * @param waitMs how long to wait for all sessions together, in milliseconds
 */
export async function releaseSessionsOf(user: string, waitMs: number, context: ReleaseContext): Promise<Released> {
  const { store } = context;
  const until = performance.now() + waitMs;
  const result: Released = { released: [], kept: [] };
  let left = (await sessionsOfThisHost(store)).filter(({ owner, released }) => owner === user && released !== true);
  for (;;) {
    const { servers } = await store.registry.read();
    const kept: Released["kept"] = [];
    for (const record of left) {
      const reason = await release(record, servers[record.serverId], context);
      if (reason === null) result.released.push(record.id);
      else kept.push({ id: record.id, reason });
    }
    if (kept.length === 0 || performance.now() >= until) return { ...result, kept };
    await pause(RETRY_MS, context.signal);
    // Read the records again, because the sessions may be on other servers by now.
    const isKept = ({ id, released }: SessionRecord) => released !== true && kept.some((each) => each.id === id);
    left = (await sessionsOfThisHost(store)).filter(isKept);
  }
}

async function release(
  record: SessionRecord,
  server: ServerRecord | undefined,
  context: ReleaseContext,
): Promise<KeptReason | null> {
  const { store } = context;
  if ((await store.leases.read(record.id)) !== null) return "leased";
  if (server === undefined) return await letGo(record, store);
  // A process that opens the session sets its use marker and then reads the record. So either that process finds the
  // session released, or this one finds the marker.
  using marker = setEvictionMarker(server, record.id);
  if (marker === null) return "in use";
  if (!(await unload(record, server, context.answerMs))) return "in a turn";
  return await letGo(record, store);
}

/** Unloads a session. @returns false if it stays, because it is in a turn */
async function unload({ id }: SessionRecord, server: ServerRecord, answerMs: number): Promise<boolean> {
  const { home, process } = server;
  if (process === null || !isRunning(server) || !isLoadedBy(home, id, process)) return true;
  await using connection = await RawConnection.open(provenEndpoint(server), AbortSignal.timeout(answerMs));
  return (await unloadIdle(id, connection)) !== "in a turn";
}

/**
 * Records that the session is released, unless it has moved or is on its way between hosts. @returns why the session
 * was not released; null if it was
 */
async function letGo(record: SessionRecord, store: Store): Promise<KeptReason | null> {
  return await store.sessions.update(record.id, (draft) => {
    if (draft.host !== record.host || draft.term !== record.term || draft.from !== undefined) return "in use";
    // The session has moved to another server of this host. Nobody has checked whether it is in use there.
    if (draft.serverId !== record.serverId) return "in use";
    draft.released = true;
    return null;
  });
}
