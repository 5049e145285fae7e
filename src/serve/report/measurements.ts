import { statSync } from "node:fs";
import { access, constants, statfs } from "node:fs/promises";
import { systemCode } from "../../base/errors.js";
import { NO_SANDBOX } from "../../base/sandbox.js";
import { type Registry, SERVER_STATES, type ServerRecord, type ServerState } from "../../base/server.js";
import type { TurnOutcome } from "../../base/session.js";
import { system } from "../../base/system/system.js";
import { logPath } from "../../runtime/files/server-folder.js";
import { openHistory, type SessionEvents } from "../../runtime/history/session-events.js";
import type { EndedTurn, OpenTurn, TurnTracker } from "../../runtime/history/turn-tracker.js";
import { type LaunchedProcess, processesByLaunch } from "../../runtime/process/process-table.js";
import { knownLoaded, lately } from "../../sessions/memory/open-notes.js";
import { purgesUnderWay } from "../../store/purges.js";
import { logFailure, type ServeContext } from "../context.js";

/** Makes the measurements that the metrics show as current values, once per health interval. */
export class Measurements {
  readonly #context: ServeContext;
  readonly #processes: ServerProcesses;
  readonly #turns = new TurnWatch();
  /** Sessions whose stalled turn we have already reported. */
  #stalled = new Set<string>();
  readonly #disks: Disks;

  constructor(context: ServeContext, processes: ServerProcesses) {
    this.#context = context;
    this.#processes = processes;
    this.#disks = new Disks(context);
  }

  /** See {@link Disks.problem}. */
  get diskProblem(): string | null {
    return this.#disks.problem;
  }

  async look(registry: Registry, running: readonly ServerRecord[]): Promise<void> {
    const { store, metrics, state, provider, ledger, host, events } = this.#context;
    const servers = Object.fromEntries(SERVER_STATES.map((each) => [each, 0])) as Record<ServerState, number>;
    for (const server of Object.values(registry.servers)) servers[server.state] += 1;
    const loaded = running.flatMap(knownLoaded);
    const { inFlight, stalled } = this.#lookAtTurns(running);
    const leases = await store.leases.readMany(loaded);
    const purges = await purgesUnderWay(store);
    const begun = purges.map(({ begunAt }) => Date.parse(begunAt) / 1000);
    const memoryBytes = running.reduce((sum, server) => sum + this.#processes.memoryOf(server), 0);
    await this.#disks.checkLogs(running);
    const { inputTokens, cacheReadTokens, outputTokens } = ledger.counted;
    const streams = state.http?.streams;
    metrics.observe({
      servers,
      unrestricted: running.filter(({ sandbox = NO_SANDBOX }) => sandbox.mode === "none").length,
      activeSessions: loaded.length,
      turnsInFlight: inFlight,
      turnsStalled: stalled,
      leases: leases.filter((lease) => lease !== null).length,
      purges: purges.length,
      oldestPurge: purges.length === 0 ? 0 : Math.min(...begun),
      memoryBytes,
      diskFreeBytes: await this.#disks.checkState(),
      doorClients: state.door?.clients ?? 0,
      doorTurns: state.door?.turns ?? 0,
      httpStreams: streams?.open ?? 0,
      streamEvents: streams?.events ?? 0,
      slowStreams: streams?.slow ?? 0,
      modelInFlight: provider.requests.inFlight,
      modelFailures: provider.requests.failed,
      turnsCounted: ledger.counted.turns,
      modelRequests: ledger.counted.requests,
      modelTokens: { input: inputTokens ?? 0, cached: cacheReadTokens ?? 0, output: outputTokens ?? 0 },
      events: events.counts,
      eventsWaiting: events.counts.waiting,
    });
    const gauges = { turnsInFlight: inFlight, servers: running.length, activeSessions: loaded.length, memoryBytes };
    host.ring.take(gauges, Date.now());
  }

  #lookAtTurns(running: readonly ServerRecord[]): { inFlight: number; stalled: number } {
    const { config, metrics, host, log } = this.#context;
    const nowMs = Date.now();
    const sessions = running.flatMap((server) =>
      lately(server).map((session) => ({
        ...session,
        serverId: server.id,
        home: server.home,
        launchedAtMs: Date.parse(server.startedAt ?? "") || 0,
      })),
    );
    const look = this.#turns.look(sessions, nowMs);
    for (const { outcome, durationMs, serverId, sessionId } of look.ended) {
      metrics.turnEnded(outcome, durationMs / 1000);
      host.ring.turnEnded(outcome, durationMs, nowMs);
      // The metrics contain no names, so log the server and the session.
      const fields = { server: serverId, session: sessionId };
      if (outcome === "cut") log("warn", `the turn in session ${sessionId} was cut`, fields);
      if (outcome === "failed") log("info", `the turn in session ${sessionId} failed`, fields);
    }
    for (const { serverId, sessionId, error } of look.unreadable)
      logFailure(this.#context, "a session's history could not be read", error, {
        server: serverId,
        session: sessionId,
      });
    const stalled = look.inFlight.filter(({ lastEventAtMs }) => nowMs - lastEventAtMs > config.health.stalledTurnMs);
    const known = this.#stalled;
    this.#stalled = new Set(stalled.map(({ sessionId }) => sessionId));
    for (const { serverId, sessionId, startedAtMs, lastEventAtMs } of stalled) {
      if (known.has(sessionId)) continue;
      log("warn", `the turn in session ${sessionId} makes no progress`, {
        server: serverId,
        session: sessionId,
        forMs: nowMs - startedAtMs,
        silentMs: nowMs - lastEventAtMs,
      });
    }
    return { inFlight: look.inFlight.length, stalled: stalled.length };
  }
}

/** A disk is almost full when its free space is below both limits: this many bytes, and this share of its size. */
const LOW_DISK_BYTES = 64 * 1024 * 1024;
const LOW_DISK_SHARE = 0.02;
/** A disk with fewer free bytes than this counts as full, because not even the registry of a small fleet fits on it. */
const FULL_DISK_BYTES = 16 * 1024;

/** Checks the disk that holds the state, and the disks of the servers' logs. Logs each problem once. */
class Disks {
  readonly #context: ServeContext;
  #isLow = false;
  #problem: string | null = null;
  /** Ids of the servers whose log we warned about. */
  #fullLogs = new Set<string>();

  constructor(context: ServeContext) {
    this.#context = context;
  }

  /**
   * Why nothing can be written to the disk that holds the state, as of the last check. Null if the disk can be written
   * to.
   */
  get problem(): string | null {
    return this.#problem;
  }

  /** Checks the disk that holds the state. @returns its free space in bytes, or null if the check failed */
  async checkState(): Promise<number | null> {
    const { stateRoot, log } = this.#context;
    try {
      const { freeBytes, low, problem } = await diskOf(stateRoot);
      const known = this.#problem;
      this.#problem = problem === null ? null : `the disk that holds the state ${problem}`;
      if (this.#problem !== null && known === null) log("error", this.#problem, { freeBytes, stateRoot });
      if (low && !this.#isLow) log("warn", "the disk that holds the state is almost full", { freeBytes, stateRoot });
      this.#isLow = low;
      return freeBytes;
    } catch (error) {
      logFailure(this.#context, "the disk that holds the state could not be checked", error);
      return null;
    }
  }

  /**
   * Checks the disks of the logs that are not on the same disk as the state. A server that cannot write to its log
   * keeps running, and its log has a gap. The warning in the log of `serve` explains this gap.
   */
  async checkLogs(servers: readonly ServerRecord[]): Promise<void> {
    const { stateRoot, log } = this.#context;
    const known = this.#fullLogs;
    this.#fullLogs = new Set();
    const stateDisk = diskIdOf(stateRoot);
    for (const { id, home } of servers) {
      const path = logPath(home);
      const disk = diskIdOf(path);
      if (disk === undefined || disk === stateDisk) continue;
      try {
        const { problem, freeBytes } = await diskOf(path);
        if (problem === null) continue;
        this.#fullLogs.add(id);
        if (known.has(id)) continue;
        log("warn", `server ${id} writes its log to a disk that ${problem}`, { server: id, path, freeBytes });
      } catch (error) {
        logFailure(this.#context, `the disk of the log of server ${id} could not be checked`, error, { server: id });
      }
    }
  }
}

function diskIdOf(path: string): number | undefined {
  return statSync(path, { throwIfNoEntry: false })?.dev;
}

/**
 * @returns `problem`: why the disk cannot be written to, in words that follow "the disk"; null if it can be written to
 */
async function diskOf(path: string): Promise<{ freeBytes: number; low: boolean; problem: string | null }> {
  const { bsize, bavail, blocks, files, ffree } = await statfs(path);
  const freeBytes = bsize * bavail;
  // A file system without a fixed number of files may report 0 for both `files` and `ffree`.
  const full = freeBytes < FULL_DISK_BYTES || (files > 0 && ffree === 0);
  return {
    freeBytes,
    low: freeBytes < Math.min(LOW_DISK_BYTES, bsize * blocks * LOW_DISK_SHARE),
    problem: full ? "is full" : await unwritable(path),
  };
}

/**
 * Why the path cannot be written to, for example because the kernel made the disk read-only after an error. The words
 * follow "the disk". Null if the path can be written to.
 */
async function unwritable(path: string): Promise<string | null> {
  try {
    await access(path, constants.W_OK);
    return null;
  } catch (error) {
    return `cannot be written (${systemCode(error) ?? String(error)})`;
  }
}

/** How a host is used at one moment, and what has happened on it since the previous sample. */
export interface Sample {
  /** ISO 8601, UTC. */
  at: string;
  /** The turns that ended since the previous sample. */
  turns: Record<TurnOutcome, number>;
  /**
   * Percentiles of the durations of the turns that ended in the last minute, in milliseconds. Null if no turn ended.
   */
  turnMs: { p50: number | null; p95: number | null };
  turnsInFlight: number;
  /** Servers that run. */
  servers: number;
  /** Sessions in the memory of these servers. */
  activeSessions: number;
  /** Sessions that were unloaded since the previous sample, because a server had too many sessions in memory. */
  evictions: number;
  /** The private memory of the servers and of everything that their sessions started, in bytes. */
  memoryBytes: number;
}

export type Gauges = Pick<Sample, "turnsInFlight" | "servers" | "activeSessions" | "memoryBytes">;

/** The maximum number of samples in memory: one hour of samples at the default interval of the health checks. */
const MOST = 720;
/** The percentiles cover the turns that ended within this time, but at most `MOST_TURNS` turns. */
const WINDOW_MS = 60_000;
const MOST_TURNS = 10_000;

/** The last samples of this host, in memory. Empty unless `serve` with the HTTP API runs in this process. */
export class SampleRing {
  #isOn = false;
  #samples: Sample[] = [];
  #turns = noTurns();
  #evictions = 0;
  /** The last turns that ended, for the percentiles. */
  #ended: { seenAtMs: number; durationMs: number }[] = [];

  start(): void {
    this.#isOn = true;
  }

  /** @param nowMs Unix time in milliseconds */
  turnEnded(outcome: TurnOutcome, durationMs: number, nowMs: number): void {
    if (!this.#isOn) return;
    this.#turns[outcome] += 1;
    this.#ended.push({ seenAtMs: nowMs, durationMs });
    if (this.#ended.length > MOST_TURNS) this.#ended.shift();
  }

  evicted(count: number): void {
    if (this.#isOn) this.#evictions += count;
  }

  /** @param nowMs Unix time in milliseconds */
  take(gauges: Gauges, nowMs: number): void {
    if (!this.#isOn) return;
    this.#ended = this.#ended.filter(({ seenAtMs }) => nowMs - seenAtMs < WINDOW_MS);
    const sorted = this.#ended.map(({ durationMs }) => durationMs).sort((a, b) => a - b);
    const turnMs = { p50: percentile(sorted, 0.5), p95: percentile(sorted, 0.95) };
    const at = new Date(nowMs).toISOString();
    this.#samples.push({ at, turns: this.#turns, turnMs, evictions: this.#evictions, ...gauges });
    if (this.#samples.length > MOST) this.#samples.shift();
    this.#turns = noTurns();
    this.#evictions = 0;
  }

  /** The samples after a time, the oldest first. Without a time, all of them. */
  after(time?: string): Sample[] {
    const afterMs = time === undefined ? Number.NEGATIVE_INFINITY : Date.parse(time);
    return this.#samples.filter(({ at }) => Date.parse(at) > afterMs);
  }
}

function noTurns(): Record<TurnOutcome, number> {
  return { completed: 0, failed: 0, aborted: 0, cut: 0 };
}

/**
 * The smallest value such that at least this share of all values are less than or equal to it. Null if there are no
 * values.
 */
function percentile(sorted: readonly number[], share: number): number | null {
  return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? null;
}

/** All processes of the servers at the last {@link read}: the runtimes, and everything that their sessions started. */
export class ServerProcesses {
  readonly #stateRoot: string;
  #processes = new Map<string, LaunchedProcess[]>();
  /** The memory of each launch in bytes, by launch id. */
  readonly #memory = new Map<string, number>();

  constructor(stateRoot: string) {
    this.#stateRoot = stateRoot;
  }

  /** Finds the processes. This takes two file reads for every process on this machine. */
  read(): void {
    this.#memory.clear();
    this.#processes = processesByLaunch(this.#stateRoot);
  }

  /** The processes of a launch, including its runtime. */
  of(launchId: string): readonly LaunchedProcess[] {
    return this.#processes.get(launchId) ?? [];
  }

  /** The private memory of a server's runtime and of everything that its sessions started, in bytes. */
  memoryOf({ launchId, process }: ServerRecord): number {
    const known = this.#memory.get(launchId ?? "");
    if (known !== undefined) return known;
    const pids = new Set([
      ...this.of(launchId ?? "").map(({ identity }) => identity.pid),
      ...(process === null ? [] : [process.pid]),
    ]);
    const bytes = [...pids].reduce((sum, pid) => sum + (system().processes.privateMemoryBytes(pid) ?? 0), 0);
    this.#memory.set(launchId ?? "", bytes);
    return bytes;
  }
}

export interface LoadedSession {
  serverId: string;
  sessionId: string;
  home: string;
  /**
   * Whether the server has the session in its memory. If not, every turn that began before this call of `look` has
   * ended.
   */
  isLoaded: boolean;
  /**
   * When the server's process was launched (Unix time in milliseconds). Turns that began earlier ended with an earlier
   * process.
   */
  launchedAtMs: number;
}

type SessionName = Pick<LoadedSession, "serverId" | "sessionId">;

export interface WatchedTurn extends SessionName {
  outcome: TurnOutcome;
  /** From the prompt to the end of the last step, in milliseconds. For a cut turn, at most until we noticed the cut. */
  durationMs: number;
}

export interface Look {
  ended: WatchedTurn[];
  inFlight: (SessionName & OpenTurn)[];
  /** Sessions whose history we could not read, so that we know nothing about their turns. */
  unreadable: (SessionName & { error: unknown })[];
  /** Whether there was more to read than one look may read. The next looks read the rest. */
  isBehind: boolean;
}

/**
 * How many bytes one look reads at most, in total and per session. Parsing a megabyte of short events takes about 20
 * ms.
 */
const LOOK_BYTES = 2 * 1024 * 1024;
const SESSION_BYTES = 1024 * 1024;

interface Watched {
  session: LoadedSession;
  events: SessionEvents;
  tracker: TurnTracker;
}

/**
 * Watches the turns of sessions, no matter who sends the prompts, by reading the histories that the runtime writes.
 * {@link TurnTracker} has the rules. When this class sees a session for the first time, the session's turns count only
 * if they ended after the previous look.
 */
export class TurnWatch {
  readonly #watched = new Map<string, Watched>();
  /**
   * For each session that we no longer watch and whose last turn was cut: when that turn began. The runtime sometimes
   * fails to write the event `session.shutdown`. Without this event, the turn looks open when the session is loaded
   * again.
   */
  readonly #cut = new Map<string, number>();
  readonly #lookBytes: number;
  /** Sessions that the last look did not read to the end. Sessions that it did not read at all come first. */
  #behind: string[] = [];
  /** The time of the last look. Infinite before the first look, so that turns that are already over do not count. */
  #lookedAtMs = Number.POSITIVE_INFINITY;

  constructor(options: { lookBytes?: number } = {}) {
    this.#lookBytes = options.lookBytes ?? LOOK_BYTES;
  }

  /**
   * Reads what was added to the histories of the sessions, and reports their turns.
   *
   * @param sessions the sessions that are loaded now, or were loaded since the last look. If a watched session is
   * missing here, its history is read one last time, and a turn that is still in flight counts as cut.
   * @param nowMs milliseconds since the epoch, by the clock of the machine that the servers run on. Read this clock
   * before you find out which sessions are loaded.
   */
  look(sessions: Iterable<LoadedSession>, nowMs: number): Look {
    const loaded = new Map([...sessions].map((session) => [`${session.serverId}/${session.sessionId}`, session]));
    const order = new Set([...this.#behind, ...loaded.keys(), ...this.#watched.keys()]);
    const look: Look = { ended: [], inFlight: [], unreadable: [], isBehind: false };
    const partly: string[] = [];
    const unread: string[] = [];
    let left = this.#lookBytes;
    for (const key of order) {
      const session = loaded.get(key) ?? this.#watched.get(key)?.session;
      if (session === undefined) continue; // unloaded before we read anything of its history
      if (left > 0) {
        const { bytes, atEnd } = this.#read(key, session, look, nowMs);
        left -= bytes;
        if (!atEnd) partly.push(key);
        else if (!loaded.has(key)) this.#forget(key, look, nowMs);
      } else unread.push(key);
      const { startedAtMs, lastEventAtMs } = this.#watched.get(key)?.tracker.open ?? {};
      if (startedAtMs !== undefined && lastEventAtMs !== undefined)
        look.inFlight.push({ ...namesOf(session), startedAtMs, lastEventAtMs });
    }
    this.#lookedAtMs = nowMs;
    this.#behind = [...unread, ...partly];
    look.isBehind = this.#behind.length > 0;
    return look;
  }

  #read(key: string, session: LoadedSession, look: Look, nowMs: number): { bytes: number; atEnd: boolean } {
    try {
      const watched = this.#watched.get(key);
      return watched === undefined
        ? this.#open(key, session, look, nowMs)
        : this.#follow(Object.assign(watched, { session }), look, nowMs);
    } catch (error) {
      this.#watched.delete(key);
      look.unreadable.push({ ...namesOf(session), error });
      return { bytes: 0, atEnd: true };
    }
  }

  #open(key: string, session: LoadedSession, look: Look, nowMs: number): { bytes: number; atEnd: boolean } {
    const { events, tracker, ended, bytes } = openHistory(session.home, session.sessionId, SESSION_BYTES);
    // Count only turns that ended since the last look. The session may have been loaded only after that look.
    for (const turn of ended) if (turn.endedAtMs >= this.#lookedAtMs) noteEnd(look, session, turn);
    const { startedAtMs, lastEventAtMs } = tracker.open ?? {};
    const isCounted = startedAtMs !== undefined && startedAtMs === this.#cut.get(key);
    this.#cut.delete(key);
    const cut = isCounted ? tracker.close(nowMs) : closeIfCut(tracker, session, nowMs);
    // Do not count an older turn. We counted it when it was cut, or it was cut while no supervisor ran.
    if (!isCounted && lastEventAtMs !== undefined && lastEventAtMs >= this.#lookedAtMs) noteEnd(look, session, cut);
    this.#watched.set(key, { session, events, tracker });
    return { bytes, atEnd: true };
  }

  #follow(watched: Watched, look: Look, nowMs: number): { bytes: number; atEnd: boolean } {
    const { session, tracker } = watched;
    const { events, bytes, atEnd, fate } = watched.events.read(SESSION_BYTES);
    const note = (turn: EndedTurn | null) => noteEnd(look, session, turn);
    if (fate === "replaced") return this.#startOver(watched, look, nowMs);
    for (const event of events) note(tracker.push(event));
    if (fate === "gone") note(tracker.close(nowMs));
    else if (atEnd) note(tracker.endIfQuiet(nowMs) ?? closeIfCut(tracker, session, nowMs));
    return { bytes, atEnd };
  }

  /** Reads a history that has replaced the earlier one. The new history may show how the turn in flight ended. */
  #startOver(watched: Watched, look: Look, nowMs: number): { bytes: number; atEnd: boolean } {
    const { session, tracker } = watched;
    const before = tracker.open;
    const opened = openHistory(session.home, session.sessionId, SESSION_BYTES);
    watched.events = opened.events;
    watched.tracker = opened.tracker;
    if (before !== null && opened.tracker.open?.startedAtMs !== before.startedAtMs) {
      const end = opened.ended.find(({ startedAtMs }) => startedAtMs === before.startedAtMs) ?? tracker.close(nowMs);
      noteEnd(look, session, end);
    }
    const cut = closeIfCut(opened.tracker, session, nowMs);
    if (cut?.startedAtMs === before?.startedAtMs) noteEnd(look, session, cut);
    return { bytes: opened.bytes, atEnd: true };
  }

  #forget(key: string, look: Look, nowMs: number): void {
    const watched = this.#watched.get(key);
    if (watched === undefined) return;
    this.#watched.delete(key);
    noteEnd(look, watched.session, watched.tracker.close(nowMs));
    const { lastCut } = watched.tracker;
    if (lastCut !== null) this.#cut.set(key, lastCut.startedAtMs);
  }
}

/**
 * Ends the turn in flight if its server process has ended or has unloaded the session. The history may not show this.
 */
function closeIfCut(tracker: TurnTracker, { isLoaded, launchedAtMs }: LoadedSession, nowMs: number): EndedTurn | null {
  if (tracker.open === null) return null;
  const { startedAtMs } = tracker.open;
  if (startedAtMs < launchedAtMs) return tracker.close(Math.min(launchedAtMs, nowMs));
  // The server may have loaded the session and begun this turn after we checked whether the session is loaded.
  return isLoaded || startedAtMs >= nowMs ? null : tracker.close(nowMs);
}

function noteEnd(look: Look, session: LoadedSession, turn: EndedTurn | null): void {
  if (turn === null) return;
  look.ended.push({ ...namesOf(session), outcome: turn.outcome, durationMs: turn.endedAtMs - turn.startedAtMs });
}

function namesOf({ serverId, sessionId }: LoadedSession): SessionName {
  return { serverId, sessionId };
}
