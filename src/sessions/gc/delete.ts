import { setTimeout as delay } from "node:timers/promises";
import { isFleetError, systemCode } from "../../base/errors.js";
import type { Registry } from "../../base/server.js";
import type { SessionRecord } from "../../base/session.js";
import { claimedBy, ownPid } from "../../runtime/history/session-state.js";
import { mapConcurrently } from "../../servers/admission.js";
import { isRunning } from "../../servers/server.js";
import { usedSessions } from "../../servers/use-markers.js";
import { isFull } from "../../store/file/failures.js";
import type { Store } from "../../store/store.js";
import type { Run } from "./collect.js";
import { type Candidate, type HostsSeen, isInUse, type Leftover, measureFolder, type Note } from "./survey.js";

/**
 * Why a session past its TTL stays:
 * - `active`: it is in a server's memory
 * - `busy`: it is in a turn
 * - `leased`: it is under a lease
 * - `in-use`: a live process uses it, or has used it since gc looked
 * - `failed`: it could not be removed from the disk; the next gc tries again
 */
export type SkipReason = "active" | "busy" | "leased" | "in-use" | "failed";

export interface Outcome {
  session: Pick<Candidate, "id" | "owner" | "ageMs" | "bytes">;
  skipped: SkipReason | null;
}

/**
 * How long gc waits, in milliseconds, between moving a session's folder and checking for a lock. A runtime that was
 * just opening the session creates its lock 3 to 10 ms after it first looks at the folder (measured).
 */
const OPENING_MS = 25;
/**
 * How many folders to remove at once: four, because Node uses four threads for the disk (measured: four removals at
 * once take half as long as one after the other).
 */
const REMOVED_AT_ONCE = 4;

/** The PIDs that running servers put into the names of their session locks. */
export function runningPids({ servers }: Registry): Set<number> {
  const running = Object.values(servers).filter(isRunning);
  return new Set(running.flatMap(({ process }) => (process === null ? [] : ownPid(process))));
}

/** Why the session must not be deleted. Null if its locks, its lease and its record allow the deletion. */
export async function findUse(
  store: Store,
  { id, path, record }: Candidate,
  pids: ReadonlySet<number>,
  hosts: HostsSeen,
): Promise<SkipReason | null> {
  if (path !== null && claimedBy(path).some((pid) => pids.has(pid))) return "active";
  if ((await store.leases.read(id)) !== null) return "leased";
  return record !== null && isInUse(record, hosts) ? "in-use" : null;
}

/**
 * Deletes the given sessions together, except those that are in use. All of them are in one session-state folder. The
 * outcomes do not contain sessions that another process deleted first. Decision 5
 * (docs/decisions/0005-gc-moves-folders.md) gives the reasons for the order of the steps.
 *
 * @param run this gc's run in that folder; null if the sessions have no folders
 */
export async function deleteSessions(
  store: Store,
  run: Run | null,
  chunk: readonly Candidate[],
  hosts: HostsSeen,
): Promise<Outcome[]> {
  const outcomes: Outcome[] = [];
  const skip = (session: Candidate, skipped: SkipReason) => void outcomes.push({ session, skipped });
  const pids = runningPids(await store.registry.read());
  const marked = markedIn(chunk);
  const unused: Candidate[] = [];
  for (const session of chunk) {
    const use = (await findUse(store, session, pids, hosts)) ?? (marked(session) ? "in-use" : null);
    if (use === null) unused.push(session);
    else skip(session, use);
  }
  const noted =
    run === null
      ? unused
      : await noteAll(run, unused, async (session) => {
          for (const { id } of await deleteRecords(store, [session], skip))
            outcomes.push({ session, skipped: await removing(async () => await run.removeInPlace(id)) });
        });
  const moved: { session: Candidate; path: string }[] = [];
  for (const session of await deleteRecords(store, noted, skip)) {
    try {
      const path = session.path === null ? null : (run?.take(session.id) ?? null);
      if (path !== null) moved.push({ session, path });
      // If there is no folder and there was no record, another process has deleted the session and reports it.
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

/**
 * Writes the journal. As long as the disk is too full for it, first deletes the largest session without a note. If gc
 * is killed during such a deletion, the rest of the folder stays until it is past its TTL.
 *
 * @returns the sessions that are in the journal
 */
async function noteAll(
  run: Run,
  sessions: readonly Candidate[],
  deleteFirst: (session: Candidate) => Promise<void>,
): Promise<Candidate[]> {
  const left = sessions.toSorted((a, b) => a.bytes - b.bytes);
  for (;;) {
    try {
      run.note(left.map(noteOf));
      return left;
    } catch (error) {
      const largest = left.pop();
      if (largest === undefined || !(isFleetError(error) && isFull(error.cause))) throw error;
      await deleteFirst(largest);
      if (left.length === 0) return [];
    }
  }
}

/** Reads the use markers of each server once. Returns a function that checks whether a session has a use marker. */
function markedIn(sessions: readonly Candidate[]): (session: Candidate) => boolean {
  const servers = new Set(sessions.flatMap(({ server }) => server ?? []));
  const used = new Map([...servers].map((server) => [server, usedSessions(server)]));
  return ({ server, id }) => server !== null && used.get(server)?.has(id) === true;
}

/**
 * Deletes the records. gc does this before it deletes the folders, and `markedRecord` relies on this order. Resolves
 * with the sessions that may now be deleted from disk.
 */
async function deleteRecords(
  store: Store,
  sessions: readonly Candidate[],
  skip: (session: Candidate, reason: SkipReason) => void,
): Promise<Candidate[]> {
  const judged = new Map(sessions.flatMap(({ id, record }) => (record === null ? [] : [[id, JSON.stringify(record)]])));
  const isUnchanged = (record: SessionRecord) => JSON.stringify(record) === judged.get(record.id);
  const deleted = new Set(await store.sessions.deleteMany([...judged.keys()], isUnchanged));
  const marked = markedIn(sessions);
  const going: Candidate[] = [];
  for (const session of sessions) {
    const { id, record } = session;
    if (record !== null && !deleted.has(id)) {
      // Either the session was used since the survey read its record, or another gc has deleted the record.
      if ((await store.sessions.read(id)) !== null) skip(session, "in-use");
      continue;
    }
    const use = (await store.leases.read(id)) !== null ? "leased" : marked(session) ? "in-use" : null;
    if (use === null) going.push(session);
    else {
      await putBack(store, record);
      skip(session, use);
    }
  }
  return going;
}

/** Removes the moved folders. If a server has just opened one of the sessions, moves its folder back. */
async function removeMoved(
  store: Store,
  run: Run,
  moved: readonly { session: Candidate; path: string }[],
  mayBeOpened: boolean,
): Promise<Outcome[]> {
  if (mayBeOpened) await delay(OPENING_MS);
  // Read the registry only now, so that it contains servers that started during the deletion. A server is recorded
  // before it can open a session.
  const pids = runningPids(await store.registry.read());
  return await mapConcurrently(moved, REMOVED_AT_ONCE, async ({ session, path }): Promise<Outcome> => {
    const { id, record } = session;
    const isUsed = run.isOpened(id, path, pids) || (record === null && (await isRecorded(store, session)));
    if (!isUsed) return { session, skipped: await remove(run, path) };
    run.giveBack(id, path);
    await putBack(store, record);
    return { session, skipped: "in-use" };
  });
}

/** Whether the fleet has recorded the session since the survey, because somebody resumed it. */
async function isRecorded(store: Store, { id, state }: Candidate): Promise<boolean> {
  const record = await store.sessions.read(id);
  return record !== null && state?.servers.some((server) => server.id === record.serverId) === true;
}

/**
 * Removes the sessions that a gc had moved away before it was killed. Moves a session back if a server has opened it
 * since then.
 */
export async function finishLeftovers(store: Store, run: Run, left: readonly Leftover[]): Promise<Outcome[]> {
  const pids = runningPids(await store.registry.read());
  return await mapConcurrently(left, REMOVED_AT_ONCE, async ({ note, path }): Promise<Outcome> => {
    const session = describeLeftover({ note, path });
    if (!run.isOpened(note.id, path, pids)) return { session, skipped: await remove(run, path) };
    run.giveBack(note.id, path);
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
  return await removing(async () => await run.remove(path));
}

async function removing(removal: () => Promise<boolean>): Promise<SkipReason | null> {
  try {
    return (await removal()) ? null : "failed";
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    return "failed";
  }
}

/** Restores a record that was deleted too early, unless there is a new session with its id. */
async function putBack(store: Store, record: SessionRecord | null): Promise<void> {
  if (record === null) return;
  try {
    await store.sessions.create(record);
  } catch (error) {
    if (!isFleetError(error, "FLEET_SESSION_EXISTS")) throw error;
  }
}
