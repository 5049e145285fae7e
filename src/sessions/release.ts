import { isRunning } from "../pool/server.js";
import { markEviction } from "../pool/use-marks.js";
import { RawConnection } from "../runtime/client/raw-connection.js";
import { pause } from "../runtime/deadline.js";
import { provenEndpoint } from "../runtime/probe.js";
import { isLoadedBy } from "../runtime/session-state.js";
import { sessionsOfThisHost } from "../store/of-this-host.js";
import type { ServerRecord, SessionRecord, Store } from "../store/store.js";
import { type KeptReason, unloadIdle } from "./eviction.js";

export interface ReleaseContext {
  store: Store;
  /** How long a server may take over one answer, in milliseconds. */
  answerMs: number;
  /** Aborted: what is in use is not waited for any more. */
  signal?: AbortSignal | undefined;
}

export interface Released {
  released: string[];
  /** Those stay on this host, where they can be used as before. */
  kept: { id: string; reason: KeptReason }[];
}

/** How often a session that is in use is tried again, in milliseconds. */
const RETRY_MS = 100;

/**
 * Lets go of a user's sessions on this host, each between its turns: unloads it, and records that whoever shares the storage
 * may take it. One that is in use is waited for.
 *
 * @param waitMs how long that may take for all of them, in milliseconds
 * @throws the signal's own reason: those that were let go by then stay so.
 */
export async function releaseSessionsOf(user: string, waitMs: number, context: ReleaseContext): Promise<Released> {
  const { store } = context;
  const until = performance.now() + waitMs;
  const result: Released = { released: [], kept: [] };
  let left = (await sessionsOfThisHost(store)).filter(({ owner, released }) => owner === user && released !== true);
  for (;;) {
    const { servers } = await store.readRegistry();
    const kept: Released["kept"] = [];
    for (const record of left) {
      const reason = await release(record, servers[record.serverId], context);
      if (reason === null) result.released.push(record.id);
      else kept.push({ id: record.id, reason });
    }
    if (kept.length === 0 || performance.now() >= until) return { ...result, kept };
    await pause(RETRY_MS, context.signal);
    // Read anew: they may be on other servers by now.
    const isKept = ({ id, released }: SessionRecord) => released !== true && kept.some((each) => each.id === id);
    left = (await sessionsOfThisHost(store)).filter(isKept);
  }
}

/** @returns why it stays, or null. */
async function release(
  record: SessionRecord,
  server: ServerRecord | undefined,
  context: ReleaseContext,
): Promise<KeptReason | null> {
  const { store } = context;
  if ((await store.readLease(record.id)) !== null) return "leased";
  if (server === undefined) return await letGo(record, store);
  // Whoever opens it marks that first, and reads the record then: so either they find it released, or are found here.
  using mark = markEviction(server, record.id);
  if (mark === null) return "in use";
  if (!(await unload(record, server, context.answerMs))) return "in a turn";
  return await letGo(record, store);
}

/** @returns false while it is in a turn. */
async function unload({ id }: SessionRecord, server: ServerRecord, answerMs: number): Promise<boolean> {
  const pid = isRunning(server) ? server.process?.pid : undefined;
  if (pid === undefined || !isLoadedBy(server.home, id, pid)) return true;
  await using connection = await RawConnection.open(provenEndpoint(server), AbortSignal.timeout(answerMs));
  return (await unloadIdle(id, connection)) !== "in a turn";
}

/** @returns why it stays: on its way here or to another host it is nobody's to let go; or null. */
async function letGo(record: SessionRecord, store: Store): Promise<KeptReason | null> {
  return await store.updateSession(record.id, (draft) => {
    if (draft.host !== record.host || draft.term !== record.term || draft.from !== undefined) return "in use";
    // Taken to another server here, where nobody has looked whether it is in use.
    if (draft.serverId !== record.serverId) return "in use";
    draft.released = true;
    return null;
  });
}
