import { setTimeout as delay } from "node:timers/promises";
import { isFleetError, systemCode } from "../errors.js";
import { mapConcurrently } from "../pool/concurrency.js";
import { isRunning } from "../pool/server.js";
import { usedSessions } from "../pool/use-marks.js";
import { claimedBy } from "../runtime/session-state.js";
import type { Registry, SessionRecord, Store } from "../store/store.js";
import { type HostsSeen, isInUse, measureFolder } from "./gc-age.js";
import type { Leftover, Note, Run } from "./gc-run.js";
import type { Candidate } from "./gc-survey.js";

/**
 * Why a session past its TTL stays: `active` it is in a server's memory, `busy` in a turn there, `leased` under a lease,
 * `in-use` somebody is opening it, has used it since it was judged, or is the live process that an ephemeral one is for;
 * `failed` it could not be removed from the disk, and the next gc tries again.
 */
export type SkipReason = "active" | "busy" | "leased" | "in-use" | "failed";

export interface Outcome {
  session: Pick<Candidate, "id" | "owner" | "ageMs" | "bytes">;
  /** Null: it is deleted. */
  skipped: SkipReason | null;
}

/**
 * How long a runtime takes from its first look at a session's folder to its lock in it, with some to spare: measured
 * 3 to 10 ms. Whoever was in the middle of that when the folder was moved shows within this time.
 */
const OPENING_MS = 25;
/** Node has four threads for the disk; more at once gains nothing (measured: half the time of one after another). */
const REMOVED_AT_ONCE = 4;

/** PIDs of all servers that run, each proved to be the recorded process. */
export function runningPids({ servers }: Registry): Set<number> {
  return new Set(Object.values(servers).flatMap((server) => (isRunning(server) ? (server.process?.pid ?? []) : [])));
}

/** Why this session must not be deleted, as far as looking tells; null if nothing speaks against it. */
export async function findUse(
  store: Store,
  { id, path, record }: Candidate,
  pids: ReadonlySet<number>,
  hosts: HostsSeen,
): Promise<SkipReason | null> {
  if (path !== null && claimedBy(path).some((pid) => pids.has(pid))) return "active";
  if ((await store.readLease(id)) !== null) return "leased";
  return record !== null && isInUse(record, hosts) ? "in-use" : null;
}

/**
 * Deletes sessions of one state folder (`run` is null for those that have none), together, unless they are in use.
 * Sessions that somebody else deleted meanwhile are in no outcome.
 *
 * The runtime's own bulk delete is not used: it deletes even a session in a turn (measured), so a session that is
 * resumed between the look and the request would be lost. Each step here either sees such a use or is seen by it:
 *
 * 1. Locks, leases and marks of use are looked at.
 * 2. The record goes, if it is still the one that was judged: whoever wants to change it later finds none.
 * 3. Leases and marks are looked at again, and the record comes back if there is one. Whoever opens a session through the
 *    fleet marks it first and reads the record then: so either they find no record, or their mark is found here; or both, and
 *    then they wait for it to come back (`markedRecord`).
 * 4. The folder is moved away by one rename, and comes back if a server turns out to have opened it in that moment.
 *
 * Not seen is who does without all of these: a client past the fleet whose server takes longer than `OPENING_MS` from its
 * first look at the folder to its lock, and a lease taken between step 3 and 4, on a session that nobody has opened.
 */
export async function deleteSessions(
  store: Store,
  run: Run | null,
  chunk: readonly Candidate[],
  hosts: HostsSeen,
): Promise<Outcome[]> {
  const outcomes: Outcome[] = [];
  const skip = (session: Candidate, skipped: SkipReason) => void outcomes.push({ session, skipped });
  const pids = runningPids(await store.readRegistry());
  const marked = markedIn(chunk);
  const unused: Candidate[] = [];
  for (const session of chunk) {
    const use = (await findUse(store, session, pids, hosts)) ?? (marked(session) ? "in-use" : null);
    if (use === null) unused.push(session);
    else skip(session, use);
  }
  run?.note(unused.map(noteOf));
  const moved: { session: Candidate; path: string }[] = [];
  for (const session of await deleteRecords(store, unused, skip)) {
    try {
      const path = session.path === null ? null : (run?.take(session.id) ?? null);
      if (path !== null) moved.push({ session, path });
      // Without a record of its own to delete, it was whoever moved the folder that deleted it.
      else if (session.record !== null) outcomes.push({ session, skipped: null });
    } catch (error) {
      if (systemCode(error) === undefined) throw error;
      await putBack(store, session.record);
      skip(session, "failed");
    }
  }
  if (run !== null && moved.length > 0) outcomes.push(...(await removeMoved(store, run, moved, pids.size > 0)));
  return outcomes;
}

/** Tells which of these sessions somebody has marked as used, by one look at each server's marks, now. */
function markedIn(sessions: readonly Candidate[]): (session: Candidate) => boolean {
  const servers = new Set(sessions.flatMap(({ server }) => server ?? []));
  const used = new Map([...servers].map((server) => [server, usedSessions(server)]));
  return ({ server, id }) => server !== null && used.get(server)?.has(id) === true;
}

/** Steps 2 and 3. Resolves with those whose folder is to go now. */
async function deleteRecords(
  store: Store,
  sessions: readonly Candidate[],
  skip: (session: Candidate, reason: SkipReason) => void,
): Promise<Candidate[]> {
  const judged = new Map(sessions.flatMap(({ id, record }) => (record === null ? [] : [[id, JSON.stringify(record)]])));
  const isUnchanged = (record: SessionRecord) => JSON.stringify(record) === judged.get(record.id);
  const deleted = new Set(await store.deleteSessions([...judged.keys()], isUnchanged));
  const marked = markedIn(sessions);
  const going: Candidate[] = [];
  for (const session of sessions) {
    const { id, record } = session;
    if (record !== null && !deleted.has(id)) {
      // Either it was used since it was judged, or another gc was first.
      if ((await store.readSession(id)) !== null) skip(session, "in-use");
      continue;
    }
    const use = (await store.readLease(id)) !== null ? "leased" : marked(session) ? "in-use" : null;
    if (use === null) going.push(session);
    else {
      await putBack(store, record);
      skip(session, use);
    }
  }
  return going;
}

/** The end of step 4. */
async function removeMoved(
  store: Store,
  run: Run,
  moved: readonly { session: Candidate; path: string }[],
  mayBeOpened: boolean,
): Promise<Outcome[]> {
  if (mayBeOpened) await delay(OPENING_MS);
  // Only now: a server that was started meanwhile is in it, and one that holds a session was recorded before it could.
  const pids = runningPids(await store.readRegistry());
  return await mapConcurrently(moved, REMOVED_AT_ONCE, async ({ session, path }): Promise<Outcome> => {
    const { id, record } = session;
    const isUsed = run.isOpened(id, path, pids) || (record === null && (await isRecorded(store, session)));
    if (!isUsed) return { session, skipped: await remove(run, path) };
    await run.giveBack(id, path);
    await putBack(store, record);
    return { session, skipped: "in-use" };
  });
}

/** Whether somebody resumed the session through the fleet, which recorded it then. */
async function isRecorded(store: Store, { id, state }: Candidate): Promise<boolean> {
  const record = await store.readSession(id);
  return record !== null && state?.servers.some((server) => server.id === record.serverId) === true;
}

/** Finishes what gcs that were killed had moved away: gives back what is open, removes the rest. */
export async function finishLeftovers(store: Store, run: Run, left: readonly Leftover[]): Promise<Outcome[]> {
  const pids = runningPids(await store.readRegistry());
  return await mapConcurrently(left, REMOVED_AT_ONCE, async ({ note, path }): Promise<Outcome> => {
    const session = describeLeftover({ note, path });
    if (!run.isOpened(note.id, path, pids)) return { session, skipped: await remove(run, path) };
    await run.giveBack(note.id, path);
    await putBack(store, note.record);
    return { session, skipped: "in-use" };
  });
}

export function describeLeftover({ note, path }: Leftover): Outcome["session"] {
  const measured = measureFolder(path, Number.POSITIVE_INFINITY);
  const { bytes, newestMs } = typeof measured === "string" ? { bytes: 0, newestMs: Date.now() } : measured;
  return { id: note.id, owner: note.owner, bytes, ageMs: Math.max(0, Math.round(Date.now() - newestMs)) };
}

function noteOf({ id, owner, record }: Candidate): Note {
  return { id, owner, record, notedAtMs: Date.now() };
}

async function remove(run: Run, path: string): Promise<SkipReason | null> {
  try {
    return (await run.remove(path)) ? null : "failed";
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    return "failed";
  }
}

/** A record that was deleted too early comes back, unless somebody has made a new session of that id. */
async function putBack(store: Store, record: SessionRecord | null): Promise<void> {
  if (record === null) return;
  try {
    await store.createSession(record);
  } catch (error) {
    if (!isFleetError(error, "FLEET_SESSION_EXISTS")) throw error;
  }
}
