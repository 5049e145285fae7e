import type { Config } from "../config/schema.js";
import type { RollingRequest, SpawnRequest, StopRequest } from "../fleet/options.js";
import type { HostRecord } from "../model/host.js";
import type { RollingResult } from "../pool/recycle/rolling.js";
import type { ServerView } from "../pool/server.js";
import type { Stopped } from "../pool/stop/stop.js";
import type { LogPosition } from "../serve/logs/log-tail.js";
import type { GcOptions, GcResult } from "../sessions/gc/collect.js";
import type { EvictionResult, LoadedSession } from "../sessions/memory/eviction.js";
import type { Released } from "../sessions/memory/release.js";
import type { SessionView } from "../sessions/view.js";
import { ControlLink, type LinkContext } from "./calls/control-link.js";
import type { Call, HostActions, LogEnd, Restarted, Spawned } from "./host-actions.js";

export interface OtherHostContext extends LinkContext {
  config: Config;
}

/** The limit for calls that only read, in milliseconds. */
const LOOK_MS = 10_000;
/** The limit for calls that may have to start a server or wait for one, in milliseconds. */
const START_MS = 30_000;
/** How long a stop and a start may take in addition to the drain, in milliseconds. */
const BEYOND_DRAIN_MS = 60_000;
const GC_MS = 10 * 60_000;
/** How long a host waits for additions to a log before it answers that there are none, in milliseconds. */
export const MORE_LOG_MS = 5_000;

/**
 * Another host. Calls to it go over a connection to the front door of its `serve`, and `calls.ts` handles them there.
 */
export class OtherHost implements HostActions {
  readonly record: HostRecord;
  readonly #context: OtherHostContext;

  constructor(record: HostRecord, context: OtherHostContext) {
    this.record = record;
    this.#context = context;
  }

  get name(): string {
    return this.record.name;
  }

  async spawn(user: string, request: SpawnRequest, call: Call = {}): Promise<Spawned> {
    return (await this.#ask("spawn", { user, request }, startMs(request), call)) as Spawned;
  }

  async spawnMany(users: readonly string[], request: SpawnRequest, call: Call = {}): Promise<ServerView[]> {
    return (await this.#ask("spawnMany", { users, request }, startMs(request), call)) as ServerView[];
  }

  async serverFor(user: string, request: SpawnRequest, call: Call = {}): Promise<ServerView> {
    return (await this.#ask("serverFor", { user, request }, startMs(request), call)) as ServerView;
  }

  async servers(call: Call = {}): Promise<ServerView[]> {
    return (await this.#ask("servers", {}, LOOK_MS, call)) as ServerView[];
  }

  async server(id: string, call: Call = {}): Promise<ServerView> {
    return (await this.#ask("server", { id }, LOOK_MS, call)) as ServerView;
  }

  async stop(ids: readonly string[], { signal, ...request }: StopRequest): Promise<Stopped[]> {
    return (await this.#ask("stop", { ids, request }, this.#stopMs(request), callOf(signal))) as Stopped[];
  }

  async restart(ids: readonly string[], { signal, ...request }: StopRequest): Promise<Restarted> {
    return (await this.#ask("restart", { ids, request }, this.#stopMs(request), callOf(signal))) as Restarted;
  }

  async restartRolling(ids: readonly string[], { signal, ...request }: RollingRequest): Promise<RollingResult> {
    const limitMs = this.#stopMs(request) * ids.length;
    return (await this.#ask("restartRolling", { ids, request }, limitMs, callOf(signal))) as RollingResult;
  }

  async logEnd(id: string, lines: number, call: Call = {}): Promise<LogEnd> {
    return (await this.#ask("logEnd", { id, lines }, LOOK_MS, call)) as LogEnd;
  }

  async *followLog(id: string, at: LogPosition, signal: AbortSignal): AsyncGenerator<Buffer> {
    await using link = await ControlLink.open(this.#context, this.record, signal);
    for (let position = at; !signal.aborted; ) {
      const asked = link.call("moreLog", { id, at: position }, { limitMs: MORE_LOG_MS + LOOK_MS, signal });
      const more = (await asked.catch((error: unknown) => {
        if (signal.aborted) return null;
        throw error;
      })) as { bytes: string; at: LogPosition } | null;
      if (more === null) return;
      position = more.at;
      if (more.bytes !== "") yield Buffer.from(more.bytes, "base64");
    }
  }

  async sessions(user: string | undefined, call: Call = {}): Promise<SessionView[]> {
    return (await this.#ask("sessions", { user }, LOOK_MS, call)) as SessionView[];
  }

  async sessionOf(id: string, user: string, call: Call = {}): Promise<SessionView> {
    return (await this.#ask("sessionOf", { id, user }, LOOK_MS, call)) as SessionView;
  }

  async loaded(call: Call = {}): Promise<LoadedSession[]> {
    return (await this.#ask("loaded", {}, LOOK_MS, call)) as LoadedSession[];
  }

  async evict(ids: readonly string[], call: Call = {}): Promise<EvictionResult> {
    return (await this.#ask("evict", { ids }, START_MS, call)) as EvictionResult;
  }

  async deleteSessions(ids: readonly string[], user: string | undefined, call: Call = {}): Promise<string[]> {
    return (await this.#ask("deleteSessions", { ids, user }, START_MS, call)) as string[];
  }

  async gc({ signal, ...request }: GcOptions): Promise<GcResult> {
    return (await this.#ask("gc", request, GC_MS, callOf(signal))) as GcResult;
  }

  async release(user: string, waitMs: number, call: Call = {}): Promise<Released> {
    return (await this.#ask("release", { user, waitMs }, waitMs + BEYOND_DRAIN_MS, call)) as Released;
  }

  async #ask(method: string, params: object, limitMs: number, { signal }: Call): Promise<unknown> {
    signal?.throwIfAborted();
    await using link = await ControlLink.open(this.#context, this.record, signal);
    return await link.call(method, params, { limitMs, signal });
  }

  #stopMs({ drainTimeoutMs }: StopRequest): number {
    return (drainTimeoutMs ?? this.#context.config.drain.timeoutMs) + BEYOND_DRAIN_MS;
  }
}

function startMs({ waitMs = START_MS }: SpawnRequest): number {
  return waitMs + LOOK_MS;
}

function callOf(signal: AbortSignal | undefined): Call {
  return signal === undefined ? {} : { signal };
}
