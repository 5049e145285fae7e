import type { Duration } from "../config/duration.js";
import type { HostDirectory } from "../hosts/directory.js";
import type { ClearedRemain } from "../hosts/remains.js";
import type { Takeover } from "../hosts/takeover.js";
import { prepareClearing } from "../pool/clear.js";
import { sessionsInTurn } from "../pool/drain.js";
import { killStrays, repairServers, type ServerAction } from "../pool/mend.js";
import type { Pool } from "../pool/pool.js";
import { isRunning } from "../pool/server.js";
import { isLoadedBy } from "../runtime/session-state.js";
import type { Store } from "../store/store.js";
import { type HostsSeen, ttlOf } from "./gc-age.js";
import {
  deleteSessions,
  describeLeftover,
  findUse,
  finishLeftovers,
  type Outcome,
  runningPids,
  type SkipReason,
} from "./gc-delete.js";
import { leftovers, Run } from "./gc-run.js";
import { type Candidate, type Survey, survey } from "./gc-survey.js";

export interface GcContext {
  store: Store;
  stateRoot: string;
  pool: Pool;
  takeover: Pick<Takeover, "settleDue">;
  directory: HostDirectory;
  /** How long a server may take over one answer, in milliseconds. */
  answerMs: number;
  /** What could not be looked at whole is added here, with the user whose it is. */
  warnings: string[];
}

export interface GcRequest {
  /** After how long without use a session goes, such as `24h`. Default: `session.ttl` of the configuration. */
  ttl?: Duration;
  /** Change nothing, and tell what would be done. */
  dryRun?: boolean;
  /** Only this user's sessions and server. */
  user?: string;
  signal?: AbortSignal;
}

export interface GcOptions {
  /** After how long without use a session goes, in milliseconds; one with a TTL of its own goes by that. */
  ttlMs: number;
  /** Change nothing, and tell what would be done. */
  dryRun: boolean;
  /** Only this user's sessions and server. */
  user: string | undefined;
  /** Aborted: ends between two steps, with nothing half done. */
  signal: AbortSignal;
}

export interface GcResult {
  /** Ids are unique within an owner: a session that no record knows may have the id of somebody else's. */
  deleted: { id: string; owner: string | null; ageMs: number; bytes: number }[];
  skipped: { id: string; reason: SkipReason }[];
  /** Bytes of the deleted sessions' files. */
  freedBytes: number;
  dryRun: boolean;
  servers: { id: string; action: ServerAction }[];
  /** What takeovers between hosts had left in the shared storage. */
  remains: ClearedRemain[];
}

/** What is deleted together. More costs a user who comes back in this moment a longer wait, less costs more waits of ours. */
const SESSIONS_AT_ONCE = 200;

/**
 * Deletes every session past its TTL, on disk and in the store, that nobody uses, and clears away what is left of servers.
 * Safe beside itself and beside any other command; killed at any point, the next one finishes.
 */
export async function collectGarbage(context: GcContext, options: GcOptions): Promise<GcResult> {
  const { store, stateRoot, pool, directory } = context;
  const { dryRun, user, signal, ttlMs } = options;
  const servers = await repairServers(store, pool, { dryRun, signal });
  if (user === undefined) servers.push(...(await killStrays(store, stateRoot, dryRun)));
  if (!dryRun) await context.takeover.settleDue((record) => Date.now() - ttlOf(record, ttlMs), signal);
  // Before anything is deleted: what is deleted below looks like a use later.
  const clearing = await prepareClearing(store, stateRoot, { ttlMs, user, nowMs: Date.now() });
  const hosts = await seeHosts(directory);
  const isOwn = await directory.holds();
  const places = await directory.places();
  const found = await survey(store, stateRoot, { ttlMs, user, nowMs: Date.now(), hosts, isOwn, places });
  context.warnings.push(...found.warnings);
  const outcomes = dryRun
    ? await foresee(context, found, user, hosts)
    : await deleteAll(context, found, options, hosts);
  const deleted = outcomes.flatMap(({ session, skipped }) => (skipped === null ? [session] : []));
  if (dryRun) servers.push(...clearing.foresee(found.records, deleted));
  else {
    servers.push(...(await clearing.clear()));
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
  };
}

async function seeHosts(directory: HostDirectory): Promise<HostsSeen> {
  const there = new Map((await directory.list()).map(({ name, gone }) => [name, !gone]));
  return { own: directory.own, there };
}

async function deleteAll(
  context: GcContext,
  found: Survey,
  { user, signal }: GcOptions,
  hosts: HostsSeen,
): Promise<Outcome[]> {
  const { store } = context;
  const outcomes: Outcome[] = [];
  const deleteIn = async (run: Run | null, candidates: Candidate[]) => {
    for (let start = 0; start < candidates.length; start += SESSIONS_AT_ONCE) {
      signal.throwIfAborted();
      outcomes.push(...(await deleteSessions(store, run, candidates.slice(start, start + SESSIONS_AT_ONCE), hosts)));
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
  const pids = runningPids(await store.readRegistry());
  const outcomes: Outcome[] = [];
  for (const session of found.candidates) {
    outcomes.push({ session, skipped: await findUse(store, session, pids, hosts) });
  }
  const left = user === undefined ? found.states.flatMap(({ path }) => leftovers(path)) : [];
  const begun = left.map((leftover) => ({ session: describeLeftover(leftover), skipped: null }));
  return await tellTurns(context, [...outcomes, ...begun]);
}

/** Says `busy` of those active sessions that are in a turn. */
async function tellTurns(context: GcContext, outcomes: Outcome[]): Promise<Outcome[]> {
  const active = new Set(outcomes.filter(({ skipped }) => skipped === "active").map(({ session }) => session.id));
  if (active.size === 0) return outcomes;
  const { servers } = await context.store.readRegistry();
  const asked = Object.values(servers).filter((server) => {
    const pid = isRunning(server) ? server.process?.pid : undefined;
    return pid !== undefined && [...active].some((id) => isLoadedBy(server.home, id, pid));
  });
  const busy = new Set((await Promise.all(asked.map((server) => sessionsInTurn(server, context.answerMs)))).flat());
  return outcomes.map((outcome) =>
    outcome.skipped === "active" && busy.has(outcome.session.id) ? { ...outcome, skipped: "busy" } : outcome,
  );
}
