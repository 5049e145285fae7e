import { statSync } from "node:fs";
import { access, constants, statfs } from "node:fs/promises";
import { systemCode } from "../../base/errors.js";
import { NO_SANDBOX } from "../../base/sandbox.js";
import { type Registry, SERVER_STATES, type ServerRecord, type ServerState } from "../../base/server.js";
import type { TurnOutcome } from "../../base/session.js";
import { system } from "../../base/system/system.js";
import { logPath } from "../../runtime/files/server-folder.js";
import { type LaunchedProcess, processesByLaunch } from "../../runtime/process/process-table.js";
import { knownLoaded, lately } from "../../sessions/memory/open-notes.js";
import { purgesUnderWay } from "../../store/ports.js";
import type { ServeContext } from "../context.js";
import { logFailure } from "../failures.js";
import { TurnWatch } from "./turn-watch.js";

/** The silence after which a turn counts as stalled in the metrics. */
const STALLED_TURN_MS = 10 * 60_000;

const NO_STREAMS = { open: 0, events: 0, slow: 0 };

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
    const serversByState = Object.fromEntries(SERVER_STATES.map((each) => [each, 0])) as Record<ServerState, number>;
    for (const { state } of Object.values(registry.servers)) serversByState[state] += 1;
    const loaded = running.flatMap(knownLoaded);
    const { inFlight, stalled } = this.#lookAtTurns(running);
    const leases = await Promise.all(loaded.map(async (id) => await store.leases.read(id)));
    const purges = await purgesUnderWay(store);
    const begun = purges.map(({ begunAt }) => Date.parse(begunAt) / 1000);
    const memory = running.map((server) => this.#processes.memoryOf(server));
    await this.#disks.checkLogs(running);
    const memoryBytes = memory.reduce((sum, bytes) => sum + bytes, 0);
    metrics.observe({
      serversByState,
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
      streams: state.http?.streams ?? NO_STREAMS,
      modelRequests: provider.requests,
      usage: ledger.counted,
      events: events.counts,
    });
    const gauges = { turnsInFlight: inFlight, servers: running.length, activeSessions: loaded.length, memoryBytes };
    host.ring.take(gauges, Date.now());
  }

  #lookAtTurns(running: readonly ServerRecord[]): { inFlight: number; stalled: number } {
    const { metrics, host, log } = this.#context;
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
    const stalled = look.inFlight.filter(({ lastEventAtMs }) => nowMs - lastEventAtMs > STALLED_TURN_MS);
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

/**
 * All processes of the servers: the runtimes, and everything that their sessions started. Finding them takes two file
 * reads for every process on this machine, so this class uses each result for `intervalMs` milliseconds.
 */
export class ServerProcesses {
  readonly #stateRoot: string;
  readonly #intervalMs: number;
  #lookedAt = Number.NEGATIVE_INFINITY;
  #processes = new Map<string, LaunchedProcess[]>();
  /** The memory of each launch in bytes, by launch id. */
  readonly #memory = new Map<string, number>();

  constructor(stateRoot: string, intervalMs: number) {
    this.#stateRoot = stateRoot;
    this.#intervalMs = intervalMs;
  }

  /**
   * The processes of a launch, including its runtime. Empty for a launch that began after the processes were last read.
   */
  of(launchId: string): readonly LaunchedProcess[] {
    this.#look();
    return this.#processes.get(launchId) ?? [];
  }

  /** The private memory of a server's runtime and of everything that its sessions started, in bytes. */
  memoryOf({ launchId, process }: ServerRecord): number {
    const processes = this.of(launchId ?? "");
    const known = this.#memory.get(launchId ?? "");
    if (known !== undefined) return known;
    const pids = new Set([
      ...processes.map(({ identity }) => identity.pid),
      ...(process === null ? [] : [process.pid]),
    ]);
    const bytes = [...pids].reduce((sum, pid) => sum + (system().processes.privateMemoryBytes(pid) ?? 0), 0);
    this.#memory.set(launchId ?? "", bytes);
    return bytes;
  }

  #look(): void {
    const now = performance.now();
    if (now - this.#lookedAt < this.#intervalMs) return;
    this.#lookedAt = now;
    this.#memory.clear();
    this.#processes = processesByLaunch(this.#stateRoot);
  }
}
