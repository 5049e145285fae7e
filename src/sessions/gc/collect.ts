import type { Duration } from "../../config/values/duration.js";
import type { HostDirectory } from "../../hosts/directory.js";
import type { ClearedRemain } from "../../hosts/remains.js";
import type { Takeover } from "../../hosts/takeover.js";
import type { OnProgress } from "../../model/progress.js";
import { isRunning } from "../../pool/server.js";
import { sessionsInTurn } from "../../pool/stop/drain.js";
import { isLoadedBy } from "../../runtime/history/session-state.js";
import type { SessionsContext } from "../context.js";
import { type HostsSeen, ttlOf } from "./age.js";
import { killStrays, repairServers, type ServerAction } from "./broken-servers.js";
import {
  deleteSessions,
  describeLeftover,
  findUse,
  finishLeftovers,
  type Outcome,
  runningPids,
  type SkipReason,
} from "./delete.js";
import { leftovers } from "./journal.js";
import { Run } from "./run.js";
import { type Candidate, type Survey, survey, type UnreadableRecord } from "./survey.js";
import { findUnused } from "./unused-servers.js";

export interface GcContext extends Pick<SessionsContext, "store" | "pool" | "directory" | "events"> {
  stateRoot: string;
  takeover: Pick<Takeover, "settleDue">;
  /** How long a server may take for one answer, in milliseconds. */
  answerMs: number;
  /** Receives a message for each folder that gc handles only in part. */
  warnings: string[];
}

export interface GcRequest {
  /** How long a session must be unused before it is deleted, such as `24h`. Default: `session.ttl` of the configuration. */
  ttl?: Duration;
  /** Change nothing, and report what would be done. */
  dryRun?: boolean;
  user?: string;
  /** Delete only sessions with these ids, if they are past their TTL. Default: all. */
  sessionIds?: readonly string[];
  /** Called before each batch of sessions that this host deletes. */
  onProgress?: OnProgress;
  /** If it aborts, gc ends after the current step and leaves nothing half done. */
  signal?: AbortSignal;
}

export interface GcOptions extends Required<Pick<GcRequest, "dryRun" | "signal">> {
  /**
   * How long a session must be unused before it is deleted, in milliseconds; infinite: such sessions are kept. A session's
   * own TTL takes precedence.
   */
  ttlMs: number;
  user: string | undefined;
  sessionIds?: readonly string[] | undefined;
  onProgress?: OnProgress | undefined;
}

export interface GcResult {
  /** Contains the owners, because sessions of two users may have the same id if the fleet did not create them. */
  deleted: { id: string; owner: string | null; ageMs: number; bytes: number }[];
  skipped: { id: string; reason: SkipReason }[];
  /** Bytes of the deleted sessions' files. */
  freedBytes: number;
  dryRun: boolean;
  servers: { id: string; action: ServerAction }[];
  /** The left-overs of takeovers that gc has removed from the shared storage. */
  remains: ClearedRemain[];
  /** The records that cannot be read. gc leaves these sessions alone. */
  unreadable: UnreadableRecord[];
}

/**
 * How many sessions are deleted together. A user who resumes one of them during the deletion waits until the deletion
 * ends.
 */
const SESSIONS_AT_ONCE = 200;

/**
 * Deletes every unused session past its TTL, on disk and in the store. Repairs broken servers and removes unused ones. Any
 * number of gcs and other commands may run at the same time. If a gc is killed, the next one finishes its work.
 */
export async function collectGarbage(context: GcContext, options: GcOptions): Promise<GcResult> {
  const { store, stateRoot, pool, directory } = context;
  const { dryRun, user, signal, ttlMs, sessionIds } = options;
  const servers = await repairServers(store, pool, { dryRun, signal });
  if (user === undefined) servers.push(...(await killStrays(store, stateRoot, dryRun)));
  if (!dryRun) await context.takeover.settleDue((record) => Date.now() - ttlOf(record, ttlMs), signal);
  // Find the unused servers before any session is deleted, because a deletion looks like a use of the server.
  const unused = await findUnused(store, stateRoot, { ttlMs, user, nowMs: Date.now() });
  const hosts = await seeHosts(directory);
  const isOwn = await directory.holds();
  const places = await directory.places();
  const found = await survey(store, stateRoot, { ttlMs, user, nowMs: Date.now(), hosts, isOwn, places });
  context.warnings.push(...found.warnings);
  if (sessionIds !== undefined) {
    const chosen = new Set(sessionIds);
    found.candidates = found.candidates.filter(({ id }) => chosen.has(id));
  }
  const outcomes = dryRun
    ? await foresee(context, found, user, hosts)
    : await deleteAll(context, found, options, hosts);
  const deleted = outcomes.flatMap(({ session, skipped }) => (skipped === null ? [session] : []));
  if (!dryRun)
    for (const { id, owner } of deleted)
      context.events.note({ type: "session.deleted", user: owner, sessionId: id, reason: "ttl" });
  if (dryRun) servers.push(...unused.foresee(found.records, deleted));
  else {
    servers.push(...(await unused.remove()));
    if (user === undefined) await store.sweep();
  }
  return {
    deleted: deleted.map(({ id, owner, ageMs, bytes }) => ({ id, owner, ageMs, bytes })),
    skipped: outcomes.flatMap(({ session, skipped }) =>
      skipped === null ? [] : [{ id: session.id, reason: skipped }],
    ),
    freedBytes: deleted.reduce((sum, { bytes }) => sum + bytes, 0),
    dryRun,
    servers,
    remains: [],
    unreadable: found.unreadable,
  };
}

async function seeHosts(directory: HostDirectory): Promise<HostsSeen> {
  const there = new Map((await directory.list()).map(({ name, gone }) => [name, !gone]));
  return { own: directory.own, there };
}

async function deleteAll(
  context: GcContext,
  found: Survey,
  { user, signal, onProgress }: GcOptions,
  hosts: HostsSeen,
): Promise<Outcome[]> {
  const { store } = context;
  const outcomes: Outcome[] = [];
  const total = found.candidates.length;
  let done = 0;
  const deleteIn = async (run: Run | null, candidates: Candidate[]) => {
    for (let start = 0; start < candidates.length; start += SESSIONS_AT_ONCE) {
      signal.throwIfAborted();
      onProgress?.({ done, total, turns: [] });
      const part = candidates.slice(start, start + SESSIONS_AT_ONCE);
      outcomes.push(...(await deleteSessions(store, run, part, hosts)));
      done += part.length;
    }
  };
  await deleteIn(
    null,
    found.candidates.filter(({ path }) => path === null),
  );
  for (const state of found.states) {
    const run = new Run(state.path);
    let finished = false;
    try {
      const killed = found.business.get(state)?.killed ?? new Set();
      if (user === undefined) outcomes.push(...(await finishLeftovers(store, run, run.inherit(killed))));
      await deleteIn(
        run,
        found.candidates.filter((session) => session.state === state && session.path !== null),
      );
      finished = true;
    } finally {
      run.end(finished);
      context.warnings.push(...run.warnings);
    }
  }
  return await tellTurns(context, outcomes);
}

async function foresee(
  context: GcContext,
  found: Survey,
  user: string | undefined,
  hosts: HostsSeen,
): Promise<Outcome[]> {
  const { store } = context;
  const pids = runningPids(await store.registry.read());
  const outcomes: Outcome[] = [];
  for (const session of found.candidates)
    outcomes.push({ session, skipped: await findUse(store, session, pids, hosts) });
  const left = user === undefined ? found.states.flatMap(({ path }) => leftovers(path)) : [];
  const begun = left.map((leftover) => ({ session: describeLeftover(leftover), skipped: null }));
  return await tellTurns(context, [...outcomes, ...begun]);
}

/** Asks the servers which sessions that were skipped as `active` are in a turn, and changes their reason to `busy`. */
async function tellTurns(context: GcContext, outcomes: Outcome[]): Promise<Outcome[]> {
  const active = new Set(outcomes.filter(({ skipped }) => skipped === "active").map(({ session }) => session.id));
  if (active.size === 0) return outcomes;
  const { servers } = await context.store.registry.read();
  const asked = Object.values(servers).filter((server) => {
    const { home, process } = server;
    return process !== null && isRunning(server) && [...active].some((id) => isLoadedBy(home, id, process));
  });
  const busy = new Set((await Promise.all(asked.map((server) => sessionsInTurn(server, context.answerMs)))).flat());
  return outcomes.map((outcome) =>
    outcome.skipped === "active" && busy.has(outcome.session.id) ? { ...outcome, skipped: "busy" } : outcome,
  );
}
