import { setTimeout as delay } from "node:timers/promises";
import { type EventPage, type EventQuery, newestEvent, readEvents } from "../accounts/audit/query.js";
import { type Verified, verifyLog } from "../accounts/audit/verify.js";
import { deadline, NEVER } from "../base/clock.js";
import { isFleetError } from "../base/errors.js";
import type { EventLog } from "../base/event.js";
import { addUp, counted, type OnProgress } from "../base/progress.js";
import type { ServerRecord } from "../base/server.js";
import { type QuotaPart, refuseSuspended } from "../base/usage.js";
import { sweepTokens } from "../identity/tokens.js";
import { logPath } from "../runtime/files/server-folder.js";
import { listSessionFolders } from "../runtime/history/session-state.js";
import { awaitMore, followLog, type LogEnd, type LogPosition, lastLogLines } from "../serve/logs.js";
import { type Sample, SampleRing } from "../serve/report/measurements.js";
import { forgetEmptyHosts } from "../servers/directory.js";
import { type RollingResult, restartRolling } from "../servers/recycle.js";
import { isBroken, type ServerView, viewServer } from "../servers/server.js";
import type { SpawnOptions } from "../servers/start.js";
import type { StopOptions, Stopped } from "../servers/stop.js";
import { abortTurnIn } from "../sessions/delete.js";
import { collectGarbage, type GcResult } from "../sessions/gc/collect.js";
import { historyFolders, historyStates, readHistory, readPrompts, type SessionPlace } from "../sessions/history.js";
import {
  allLoaded,
  askActivity,
  type EvictionResult,
  evict,
  type LoadedSession,
  type ServerActivity,
} from "../sessions/memory/eviction.js";
import type { SessionsContext } from "../sessions/problems.js";
import type { Purged } from "../sessions/purge.js";
import { clearRemains } from "../sessions/remains.js";
import type { AgentRequest } from "../sessions/requests.js";
import type { Sessions } from "../sessions/sessions.js";
import { sweepKeyedTurns } from "../sessions/use/keyed.js";
import type { SessionView } from "../sessions/view.js";
import type { AnswerOf, Call, ParamsOf } from "./calls/rpc-table.js";
import type { Host } from "./fleet-hosts.js";
import type { SpawnRequest, StopRequest } from "./options.js";

/** The methods of {@link LocalHost} whose code is loaded only when somebody calls them. */
abstract class LocalData {
  readonly #sessions: Sessions;
  readonly #stateRoot: string;

  constructor(sessions: Sessions, stateRoot: string) {
    this.#sessions = sessions;
    this.#stateRoot = stateRoot;
  }

  async exportSession(request: ParamsOf<"exportSession">, { signal = NEVER }: Call = {}) {
    const { exportHere } = await import("../sessions/archives.js");
    const archives = await this.#archives();
    const name = await archives.newName();
    return { name, ...(await exportHere(this.#sessions.context, archives.pathOf(name), { ...request, signal })) };
  }

  async readArchive({ name, offset }: ParamsOf<"readArchive">): Promise<AnswerOf<"readArchive">> {
    return { bytes: (await (await this.#archives()).read(name, offset)).toString("base64") };
  }

  async writeArchive({ name, offset, bytes }: ParamsOf<"writeArchive">): Promise<AnswerOf<"writeArchive">> {
    const archives = await this.#archives();
    const known = name ?? (await archives.newName());
    await archives.write(known, offset, Buffer.from(bytes, "base64"));
    return { name: known };
  }

  async dropArchive({ name }: ParamsOf<"dropArchive">): Promise<boolean> {
    await (await this.#archives()).remove(name);
    return true;
  }

  async importArchive(
    { name, ...request }: ParamsOf<"importArchive">,
    { signal = NEVER }: Call = {},
  ): Promise<boolean> {
    const { importHere } = await import("../sessions/archives.js");
    const archives = await this.#archives();
    try {
      await importHere(this.#sessions, archives.pathOf(name), { ...request, signal });
      return true;
    } finally {
      await archives.remove(name);
    }
  }

  async purge({ user, dryRun }: ParamsOf<"purge">, { signal = NEVER }: Call = {}): Promise<Purged> {
    const { foreseePurge, forgetOlder, purgeHere } = await import("../sessions/purge.js");
    const context = { sessions: this.#sessions, stateRoot: this.#stateRoot, signal };
    if (dryRun) return await foreseePurge(context, user);
    const purged = await purgeHere(context, user);
    const { store, directory } = this.#sessions.context;
    await store.purges.done(user, directory.own);
    // The record of the purge named the user, too.
    await forgetOlder({ store, user });
    return purged;
  }

  /**
   * Finishes this host's part of the purges that were interrupted, or that began while this host was away. A failure
   * does not stop the caller, and the next call tries again.
   */
  protected async finishPurges(signal: AbortSignal): Promise<void> {
    const { store, directory, warn } = this.#sessions.context;
    for (const purge of await store.purges.list()) {
      if (!purge.pending.includes(directory.own)) continue;
      try {
        await this.purge({ user: purge.user, dryRun: false }, { signal });
      } catch (error) {
        signal.throwIfAborted();
        warn(`A purge could not be finished: ${error instanceof Error ? error.message : String(error)}`);
      }
    }
  }

  async quota({ user }: ParamsOf<"quota">, { signal = NEVER }: Call = {}): Promise<QuotaPart[] | null> {
    const { quotaOf } = await import("../sessions/use/permit.js");
    return await quotaOf(this.#sessions.context, user, signal);
  }

  async #archives() {
    const { ArchivesUnderWay } = await import("../sessions/archives.js");
    return new ArchivesUnderWay(this.#stateRoot);
  }
}

/** How long a host waits for new bytes in a log before it answers without bytes, in milliseconds. */
export const MORE_LOG_MS = 5_000;

/** This host of the fleet. Performs the operations itself. Calls from other hosts arrive through `answerCall`. */
export class LocalHost extends LocalData implements Host {
  readonly ring = new SampleRing();
  readonly #sessions: Sessions;
  readonly #context: SessionsContext;
  readonly #stateRoot: string;

  readonly events: Host["events"] = async (query, { signal } = {}) => await ownEvents(this.#log, query, signal);
  readonly verifyEvents: Host["verifyEvents"] = async () => await verifyOwnLog(this.#log);

  constructor(sessions: Sessions, stateRoot: string) {
    super(sessions, stateRoot);
    this.#sessions = sessions;
    this.#context = sessions.context;
    this.#stateRoot = stateRoot;
  }

  get name(): string | null {
    return this.#context.directory.own;
  }

  async spawn({ user, request }: ParamsOf<"spawn">, call: Call = {}) {
    using start = startOptions(request, call);
    const { server, created } = await this.#context.pool.serverOf(user, start.options);
    return { server: this.#view(server), created };
  }

  async spawnMany({ users, request }: ParamsOf<"spawnMany">, call: Call = {}): Promise<ServerView[]> {
    using start = startOptions(request, call);
    const { onProgress } = call;
    const results = await this.#context.pool.serversOf(users, { ...start.options, onProgress });
    return results.map(({ server }) => this.#view(server));
  }

  async spawnShared(request: SpawnRequest): Promise<ServerView> {
    using start = startOptions(request, {});
    return this.#view((await this.#context.pool.addShared(start.options)).server);
  }

  async serverFor({ user, request }: ParamsOf<"serverFor">, call: Call = {}): Promise<ServerView> {
    const { pool, config, store } = this.#context;
    if (config.isolation !== "shared") return (await this.spawn({ user, request }, call)).server;
    refuseSuspended(await store.limits.read(user));
    using start = startOptions(request, call);
    return this.#view((await pool.sharedServerFor(user, start.options)).server);
  }

  async servers(_: unknown, { signal }: Call = {}): Promise<ServerView[]> {
    using limit = deadline(START_WAIT_MS, signal);
    const views = await this.#context.pool.list(limit.signal);
    return views.map((view) => ({ ...this.#named(view), sessions: listSessionFolders(view.home).length }));
  }

  async server({ id }: ParamsOf<"server">): Promise<ServerView> {
    return this.#view(await this.#context.pool.find(id));
  }

  async stop({ ids, request }: ParamsOf<"stop">, call: Call = {}): Promise<Stopped[]> {
    return await this.stopAll(ids, this.#stopOptions(request, call));
  }

  /** Stops servers. @param options.stays whether the next `serve` starts the servers again */
  async stopAll(ids: readonly string[], options: StopOptions): Promise<Stopped[]> {
    const { pool, clients } = this.#context;
    const stopped = await pool.stopAll(ids, options);
    // Close the clients only now, because closing a client ends its turns, and the drain should wait for them.
    for (const id of ids) await clients.close(id);
    return stopped.map((each) => this.#named(each));
  }

  async restart({ ids, request }: ParamsOf<"restart">, call: Call = {}): Promise<RollingResult> {
    const { pool } = this.#context;
    const progressOf = addUp(call.onProgress, ids.length);
    // For the stops, report only the turns. A server counts as done only when it has started again.
    const onProgress: OnProgress = ({ turns }) => progressOf("stop")({ done: 0, total: 0, turns });
    const options = { ...this.#stopOptions(request, call), stays: true, onProgress };
    const stopped = await this.stopAll(ids, options);
    const startAgain = async (id: string) => {
      using limit = deadline(START_WAIT_MS);
      return await pool.startAgain(await pool.find(id), { signal: limit.signal });
    };
    const servers = await Promise.all(
      ids.map(async (id: string) => {
        const again = await counted(progressOf(id), 1, async () => await startAgain(id));
        return this.#view(again.server);
      }),
    );
    return { stopped, servers };
  }

  async restartRolling({ ids, request }: ParamsOf<"restartRolling">, call: Call = {}): Promise<RollingResult> {
    const { drainTimeoutMs, signal, onProgress } = this.#stopOptions(request, call);
    const { maxUnavailable = 1 } = request;
    const options = { drainTimeoutMs, signal, onProgress, maxUnavailable };
    const { stopped, servers } = await restartRolling(this.#context.pool, ids, options);
    return { stopped: stopped.map((each) => this.#named(each)), servers: servers.map((each) => this.#named(each)) };
  }

  async logEnd({ id, ...wish }: ParamsOf<"logEnd">, { signal = NEVER }: Call = {}): Promise<LogEnd> {
    const { pool } = this.#context;
    const server = await pool.find(id);
    if (server.process !== null && isBroken(server)) {
      // The repair writes into the log how the server ended. If the repair fails, show the log without that note.
      await pool.repair(signal, id).catch((error: unknown) => {
        if (!isFleetError(error)) throw error;
      });
    }
    const log = logPath(server.home);
    return { server: id, log, ...(await lastLogLines(log, wish)) };
  }

  async *followLog(id: string, at: LogPosition, signal: AbortSignal): AsyncGenerator<Buffer> {
    yield* followLog(await this.#logOf(id), at, signal);
  }

  async moreLog({ id, at }: ParamsOf<"moreLog">, { signal }: Call = {}) {
    const log = await this.#logOf(id);
    using limit = deadline(MORE_LOG_MS, signal);
    const more = await awaitMore(log, at, limit.signal);
    return { bytes: more.bytes.toString("base64"), at: more.at };
  }

  async #logOf(id: string): Promise<string> {
    return logPath((await this.#context.pool.find(id)).home);
  }

  async sessions({ user }: ParamsOf<"sessions">): Promise<SessionView[]> {
    return await this.#sessions.list(user);
  }

  /** As {@link Sessions.idsThat}. */
  async sessionIds(isWanted: (id: string) => boolean, user: string | undefined): Promise<string[]> {
    return await this.#sessions.idsThat(isWanted, user);
  }

  async sessionOf({ id, user }: ParamsOf<"sessionOf">): Promise<SessionView> {
    return await this.#sessions.get(id, user);
  }

  async history({ id, user, from }: ParamsOf<"history">, { signal }: Call = {}): Promise<AnswerOf<"history">> {
    const { bytes, ...part } = await readHistory(this.#context, { id, user, from }, signal);
    return { ...part, bytes: bytes.toString("base64") };
  }

  /** For each session, a text that changes whenever the session's history changes. */
  async histories({ sessions }: ParamsOf<"histories">): Promise<string[]> {
    return await historyStates(this.#context, sessions);
  }

  /** The folder of a session on this host; null if there is none. */
  async folderOf(session: SessionPlace): Promise<string | null> {
    return (await historyFolders(this.#context, [session]))[0] ?? null;
  }

  async prompts(params: ParamsOf<"prompts">): Promise<AnswerOf<"prompts">> {
    return await readPrompts(this.#context, params);
  }

  async loaded(): Promise<LoadedSession[]> {
    return allLoaded(await this.#records()).map(({ id, usedMs }) => ({ id, usedMs }));
  }

  async activity(): Promise<ServerActivity[]> {
    return await askActivity(await this.#records(), this.#context.config.health.timeoutMs);
  }

  async samples({ after }: ParamsOf<"samples">): Promise<Sample[]> {
    return this.ring.after(after);
  }

  async evict({ ids }: ParamsOf<"evict">, { onProgress }: Call = {}): Promise<EvictionResult> {
    const { store, config, events } = this.#context;
    return await evict(await this.#records(), ids, { store, events, answerMs: config.health.timeoutMs, onProgress });
  }

  async abort({ id, user }: ParamsOf<"abort">): Promise<boolean> {
    return await abortTurnIn(this.#context, id, user);
  }

  async requests({ id, user }: ParamsOf<"requests">): Promise<AgentRequest[]> {
    return this.#context.requests.list(id, user);
  }

  async answerRequest({ id, user, request, answer }: ParamsOf<"answerRequest">): Promise<AgentRequest> {
    return this.#context.requests.answer(id, user, request, answer);
  }

  async noteRequest({ change }: ParamsOf<"noteRequest">): Promise<boolean> {
    this.#context.requests.announce(change);
    return true;
  }

  async deleteSessions({ ids, user }: ParamsOf<"deleteSessions">): Promise<string[]> {
    return await this.#sessions.delete(ids, user);
  }

  async gc(
    { ttlMs: given, dryRun, user, sessionIds }: ParamsOf<"gc">,
    { signal = NEVER, onProgress }: Call = {},
  ): Promise<GcResult> {
    const { store, directory, config, warn } = this.#context;
    // If the storage is not mounted, the folders of all sessions are missing, and gc must not run.
    await directory.assertStorage();
    const ttlMs = given ?? Number.POSITIVE_INFINITY;
    const warnings: string[] = [];
    const context = { ...this.#context, stateRoot: this.#stateRoot, answerMs: config.health.timeoutMs, warnings };
    const result = await collectGarbage(context, { ttlMs, dryRun, user, sessionIds, signal, onProgress });
    for (const warning of warnings) warn(warning);
    if (user !== undefined) return result;
    if (!dryRun) {
      await this.finishPurges(signal);
      await store.usage.upkeep(config.usage.retentionMs);
      await sweepTokens(store);
      await sweepKeyedTurns(store);
      await forgetEmptyHosts(store);
      await keepOwnLog(this.#context, this.#stateRoot);
    }
    const remains = await clearRemains({ store, config }, { ttlMs, dryRun, nowMs: Date.now(), signal });
    const freedBytes = remains.reduce((sum, { bytes }) => sum + bytes, result.freedBytes);
    return { ...result, freedBytes, remains };
  }

  async endTokens({ ends }: ParamsOf<"endTokens">): Promise<number> {
    for (const end of ends) await this.#context.store.tokens.noteEnd(end);
    return ends.length;
  }

  async tokenEnds(): Promise<AnswerOf<"tokenEnds">> {
    return await this.#context.store.tokens.notedEnds();
  }

  get #log() {
    return { events: this.#context.events, stateRoot: this.#stateRoot };
  }

  async #records(): Promise<ServerRecord[]> {
    return Object.values((await this.#context.store.registry.read()).servers);
  }

  #view(server: ServerRecord): ServerView {
    return this.#named(viewServer(server));
  }

  #named<T extends ServerView | Stopped>(view: T): T {
    return this.name === null ? view : { ...view, hostName: this.name };
  }

  #stopOptions(request: StopRequest, { signal = NEVER, onProgress }: Call): StopOptions {
    return {
      drainTimeoutMs: request.drainTimeoutMs ?? this.#context.config.drain.timeoutMs,
      force: request.force ?? false,
      signal,
      onProgress,
    };
  }
}

const START_WAIT_MS = 30_000;

/** The options with which this host starts servers. Their time limit begins now. Dispose them after the start. */
function startOptions({ token, cwd, waitMs }: SpawnRequest, { signal }: Call): { options: SpawnOptions } & Disposable {
  const limit = deadline(waitMs ?? START_WAIT_MS, signal);
  return {
    options: { token, cwd, calledOff: signal, signal: limit.signal },
    [Symbol.dispose]: () => limit[Symbol.dispose](),
  };
}

/** How often to look for new events, in milliseconds. */
const POLL_MS = 100;

interface OwnLog {
  events: Pick<EventLog, "flush">;
  stateRoot: string;
}

/**
 * Returns a page of this host's audit log.
 *
 * @param query.waitMs how long to wait for an event if there is none, in milliseconds
 */
export async function ownEvents(
  { events, stateRoot }: OwnLog,
  { waitMs = 0, ...query }: EventQuery & { waitMs?: number | undefined },
  signal?: AbortSignal,
): Promise<EventPage> {
  await events.flush();
  const until = performance.now() + waitMs;
  const from = query.after ?? 0;
  // If the log ends before the number `from`, it is a new log, so the caller has none of its events.
  for (let after = from > newestEvent(stateRoot) ? 0 : from; ; ) {
    const page = await readEvents(stateRoot, { ...query, after });
    if (page.events.length > 0 || page.hasMore) return page;
    after = page.next;
    do {
      if (performance.now() >= until || signal?.aborted === true) return page;
      await delay(POLL_MS, undefined, { signal }).catch(() => "aborted");
    } while (newestEvent(stateRoot) <= after);
  }
}

/** Verifies this host's audit log. */
async function verifyOwnLog({ events, stateRoot }: OwnLog): Promise<Verified> {
  await events.flush();
  return await verifyLog(stateRoot);
}

/** Shortens this host's audit log. A failure only warns. */
async function keepOwnLog(
  { config, events, warn }: Pick<SessionsContext, "config" | "events" | "warn">,
  stateRoot: string,
): Promise<void> {
  const { trimEvents } = await import("../accounts/audit/events.js");
  try {
    await trimEvents({ config, events, stateRoot });
  } catch (error) {
    warn(`The audit log was not shortened: ${error instanceof Error ? error.message : String(error)}`);
  }
}
