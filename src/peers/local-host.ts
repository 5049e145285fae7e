import { isFleetError } from "../errors.js";
import type { SpawnRequest, StopRequest } from "../fleet/options.js";
import { forgetEmptyHosts } from "../hosts/directory.js";
import { clearRemains } from "../hosts/remains.js";
import { sweepTokens } from "../identity/tokens.js";
import { addUp, counted, type OnProgress } from "../model/progress.js";
import type { ServerRecord } from "../model/server.js";
import { refuseSuspended } from "../model/usage/user-limits.js";
import { type RollingResult, restartRolling } from "../pool/recycle/rolling.js";
import { isBroken, type ServerView, viewServer } from "../pool/server.js";
import type { StopOptions, Stopped } from "../pool/stop/stop.js";
import { deadline, NEVER } from "../runtime/clock.js";
import { logPath } from "../runtime/files/server-folder.js";
import { lastLogLines } from "../serve/logs/log-end.js";
import { awaitMore, followLog, type LogEnd, type LogPosition } from "../serve/logs/log-tail.js";
import { type Sample, SampleRing } from "../serve/report/samples.js";
import { abortTurnIn } from "../sessions/abort.js";
import type { SessionsContext } from "../sessions/context.js";
import { collectGarbage, type GcResult } from "../sessions/gc/collect.js";
import { historyFolders, historyStates, readHistory, readPrompts, type SessionPlace } from "../sessions/history.js";
import { askActivity, type ServerActivity } from "../sessions/memory/activity.js";
import { allLoaded, type EvictionResult, evict, type LoadedSession } from "../sessions/memory/eviction.js";
import type { AgentRequest } from "../sessions/requests/request.js";
import type { Sessions } from "../sessions/sessions.js";
import { sweepKeyedTurns } from "../sessions/use/keyed/expiry.js";
import type { SessionView } from "../sessions/view.js";
import type { AnswerOf, Call, ParamsOf } from "./calls/rpc-table.js";
import { START_WAIT_MS, startOptions } from "./calls/start-options.js";
import { keepOwnLog, ownEvents, verifyOwnLog } from "./events/own-log.js";
import type { Host } from "./host.js";
import { LocalData } from "./local-data.js";

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
    return (await this.#context.pool.list(limit.signal)).map((view) => this.#named(view));
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
