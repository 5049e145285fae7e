import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { serverIdOf } from "../base/ids.js";
import { NO_SANDBOX, type SandboxReport } from "../base/sandbox.js";
import type { Claim, Isolation, ServerRecord, ServerState } from "../base/server.js";
import type { SessionRecord } from "../base/session.js";
import { system } from "../base/system/system.js";
import { logPath } from "../runtime/files/server-folder.js";
import { SHARED_GROUP } from "../runtime/files/shared-storage.js";
import { listLoaded } from "../runtime/history/session-state.js";
import { isAlive, ownIdentity } from "../runtime/process/process-table.js";
import { allGone } from "../runtime/process/stop.js";
import { limitsReached } from "../sandbox/limits.js";
import type { Store } from "../store/store.js";

/** A server as `--json` and the library show it. Times are ISO 8601 in UTC. */
export interface ServerView {
  id: string;
  /** The owner; null for a shared server. */
  user: string | null;
  isolation: Isolation;
  /** The name of the server's host; null in a fleet on one host. */
  hostName: string | null;
  /**
   * True if the server's host does not answer. The view then shows the last record, and nobody knows whether the server
   * runs.
   */
  away: boolean;
  /** The address on which the server listens. */
  host: string;
  /**
   * Null unless the server runs or is starting. While the server is starting, it has a port, but `url` and `pid` are
   * null.
   */
  port: number | null;
  /** `host:port`, as the SDK's `RuntimeConnection.forUri` takes it. */
  url: string | null;
  pid: number | null;
  state: ServerState;
  /** Why the server is `failed` or `unhealthy`. */
  failure: string | null;
  /** How many times in a row the server ended by itself or did not start. */
  crashes: number;
  /** Its `COPILOT_HOME`. */
  home: string;
  cwd: string;
  log: string;
  startedAt: string | null;
  uptimeMs: number | null;
  /** The private memory of the server's process, in bytes, without the processes that its sessions started. */
  memoryBytes: number | null;
  /** The number of the server's sessions, in memory or not; null if they were not counted. */
  sessions: number | null;
  /** The number of sessions in its memory. */
  activeSessions: number;
  /** The version that the runtime reports. */
  version: string | null;
  /** The sandbox that the server runs in, and the protections that this sandbox does not give. */
  sandbox: SandboxReport;
}

/** Identifies a server among all hosts: by its id, and by its host if there are several. */
export function referenceOf({ id, hostName }: { id: string; hostName: string | null }): string {
  return hostName === null ? id : `${id}@${hostName}`;
}

/** The name of the folder with a server's sessions, in its host's part of the shared storage. */
export function groupOfServer({ id, isolation }: Pick<ServerRecord, "id" | "isolation">): string {
  return isolation === "shared" ? SHARED_GROUP : id;
}

/** Like {@link groupOfServer}, for the server of a session. */
export function groupOfSession({ serverId, owner }: Pick<SessionRecord, "serverId" | "owner">): string {
  return serverId === serverIdOf(owner) ? serverId : SHARED_GROUP;
}

/** Whether the record names a process, and that very process still runs. */
export function isRunning(server: ServerRecord): boolean {
  return server.process !== null && isAlive(server.process);
}

/** How long a process may take to end after its sockets have closed, in milliseconds. */
const ENDING_MS = 2_000;

/**
 * Whether the server's process has ended. Call this after a connection to the server broke. Waits up to two seconds,
 * because a server's sockets close before its process ends.
 */
export async function hasEnded({ process }: ServerRecord): Promise<boolean> {
  return process === null || (await allGone([process], ENDING_MS));
}

/** Whether the server should run. If the record has no `desired`, its state decides. */
export function isDesired({ desired, state }: ServerRecord): boolean {
  return desired === undefined ? state !== "stopped" && state !== "failed" : desired === "running";
}

/**
 * Whether the record needs repair: the server's process is gone, or a command died while it was starting, stopping or
 * replacing the server.
 */
export function isBroken(server: ServerRecord): boolean {
  if (server.replacement != null && !isHeld(server.replacement.claim)) return true;
  switch (server.state) {
    case "stopped":
    case "failed":
      return false;
    case "starting":
    case "draining":
      return !isHeld(server.claim);
    case "ready":
    case "unhealthy":
      return !isRunning(server);
  }
}

/** Makes a view from the record and a check of the server's process. Does not ask the server. */
export function viewServer(server: ServerRecord): ServerView {
  const running = isRunning(server);
  const process = running ? server.process : null;
  const pid = process?.pid ?? null;
  const gone = !running && (server.state === "ready" || server.state === "unhealthy");
  const shownPort = pid === null && server.state !== "starting" ? null : server.port;
  return {
    id: server.id,
    user: server.user,
    isolation: server.isolation,
    hostName: null,
    away: false,
    host: server.address,
    port: shownPort,
    url: pid === null || shownPort === null ? null : `${server.address}:${shownPort}`,
    pid,
    state: gone ? "failed" : server.state,
    failure: gone ? "its process is gone" : server.failure,
    crashes: server.crashes ?? 0,
    home: server.home,
    cwd: server.cwd,
    log: logPath(server.home),
    startedAt: running ? server.startedAt : null,
    uptimeMs: running && server.startedAt !== null ? Math.max(0, Date.now() - Date.parse(server.startedAt)) : null,
    memoryBytes: pid === null ? null : system().processes.privateMemoryBytes(pid),
    sessions: null,
    activeSessions: process === null ? 0 : listLoaded(server.home, process).length,
    version: server.version,
    sandbox: sandboxOf(server, running),
  };
}

function sandboxOf({ process, sandbox = NO_SANDBOX }: ServerRecord, running: boolean): SandboxReport {
  const { limits } = sandbox;
  if (limits === undefined || !running) return sandbox;
  return { ...sandbox, limits: { ...limits, reached: limitsReached(limits, process?.pid ?? null) } };
}

/**
 * The view of a server on a host that does not answer, made from the host's last record of the server. Nobody knows
 * whether the server's process runs.
 */
export function viewServerOf(hostName: string, server: ServerRecord): ServerView {
  const view = viewServer({ ...server, process: null, port: null });
  const isUnknown = server.state !== "stopped" && server.state !== "failed";
  const unknown = { state: "unhealthy", failure: `host ${hostName} cannot be reached` } as const;
  return { ...view, ...(isUnknown ? unknown : {}), hostName, away: true };
}

/** The changes of a server's state that this copy of the module has begun and not ended. */
const moves = new Set<string>();
/** Distinguishes the moves of other threads, and of another copy of this package in this process. */
const INSTANCE = randomUUID();

/**
 * A claim of this process. It counts until it is disposed. If `serve` cannot record a failure, for example on a full
 * disk, its claim stays in the record. Because `serve` keeps running, this claim would block the server for ever. So
 * each claim names the move for which it was taken, and counts only during that move.
 */
export class HeldClaim implements Disposable {
  readonly claim: Claim;
  readonly #move = `${INSTANCE}:${randomUUID()}`;

  /**
   * Adds the move here, before anybody can record the claim, because a recorded claim whose move is not in the set does
   * not count.
   */
  constructor() {
    moves.add(this.#move);
    this.claim = { ...ownIdentity(), move: this.#move };
  }

  [Symbol.dispose](): void {
    moves.delete(this.#move);
  }
}

/**
 * Whether a claim counts: its process is alive. If this module made the claim, its move must also still be in progress.
 */
export function isHeld(claim: Claim | null): claim is Claim {
  if (claim === null || !isAlive(claim)) return false;
  return claim.move?.startsWith(`${INSTANCE}:`) !== true || moves.has(claim.move);
}

/** Whether a command is moving the server from one state to the next. */
export function isClaimed({ claim }: ServerRecord): boolean {
  return isHeld(claim);
}

const POLL_MS = 20;

/** Waits until nobody has a claim on the server, the signal aborts, or `performance.now()` has reached `untilMs`. */
export async function untilUnclaimed(
  store: Store,
  id: string,
  { untilMs = Number.POSITIVE_INFINITY, signal }: { untilMs?: number; signal: AbortSignal },
): Promise<void> {
  for (;;) {
    await delay(POLL_MS);
    if (signal.aborted || performance.now() > untilMs) return;
    const server = (await store.registry.read()).servers[id];
    if (!isHeld(server?.claim ?? null) && !isHeld(server?.replacement?.claim ?? null)) return;
  }
}
