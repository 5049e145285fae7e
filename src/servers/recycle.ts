import { randomUUID } from "node:crypto";
import { NEVER } from "../base/clock.js";
import { FleetError } from "../base/errors.js";
import { addUp, counted, type OnProgress } from "../base/progress.js";
import { sandboxReport } from "../base/sandbox.js";
import type { Claim, ProcessIdentity, Registry, Replacement, ServerRecord } from "../base/server.js";
import { countOf } from "../base/values/text.js";
import { readConnectionToken } from "../runtime/files/server-folder.js";
import { logSize } from "../runtime/files/server-log.js";
import { findRuntime } from "../runtime/launch/versions.js";
import { hasPort } from "../runtime/process/probe.js";
import { isAlive } from "../runtime/process/process-table.js";
import { logStop, stopServer } from "../runtime/process/stop.js";
import { closedBy, mapConcurrently, poolDraining } from "./admission.js";
import { changeClaimed, endingProcess, isServing, recordReady, serverTaken } from "./claims.js";
import type { Pool } from "./pool.js";
import { HeldClaim, isHeld, isRunning, type ServerView, viewServer } from "./server.js";
import { answerOf, githubToken, launchOnFreePort, tokenSourceOf } from "./start.js";
import { allCut, drainForGood, type Stopped, TERMINATE_GRACE_MS } from "./stop.js";
import { choosePort, type PoolContext, sandboxOf } from "./surroundings.js";

export interface RecycleOptions {
  /** How long turns in flight may take to end, in milliseconds. */
  drainTimeoutMs: number;
  /** How to handle turns that take longer: `cut` them, or `leave` the server as it was. */
  late: "cut" | "leave";
  /** If this signal aborts before the old process is stopped, the server stays as it was. */
  signal: AbortSignal;
  onProgress?: OnProgress | undefined;
}

export type Recycled =
  | { kind: "replaced"; server: ServerRecord; stopped: Stopped }
  /** Turns took longer than `drainTimeoutMs`, and `late` was `leave`. */
  | { kind: "busy"; sessions: string[] }
  /** The server does not run, or another command is stopping or replacing it. */
  | { kind: "unavailable" };

/**
 * Replaces a running server with a new process on the same home. Starts the new process on another port. Once it
 * answers, drains and stops the old process. If it does not answer, the old process keeps running. No session is open
 * in both processes, because the fleet connects no client to the new process before the old one has stopped.
 */
export async function recycleServer(context: PoolContext, id: string, options: RecycleOptions): Promise<Recycled> {
  const { store, config } = context;
  const runtimePath = findRuntime(config.runtime.path, context.env).path;
  const known = (await store.registry.read()).servers[id];
  if (known === undefined || !isRunning(known)) return { kind: "unavailable" };
  const token = await githubToken(context, known, tokenSourceOf(context, known), options.signal);
  const sandbox = await sandboxOf(context, { ...known, runtimePath });
  using held = new HeldClaim();
  const old = await store.registry.update((registry) =>
    claimReplacement(registry, id, { claim: held.claim, sandbox: sandboxReport(sandbox) }, context),
  );
  if (old === null) return { kind: "unavailable" };
  const { launchId } = old.replacement;
  const replacement: Abandoned = { launchId, process: null, sandbox };
  try {
    const launched = await launchOnFreePort(
      context,
      {
        server: old,
        runtimePath,
        launchId,
        port: old.replacement.port,
        // Both processes have the same connection token, so that clients of the old process can connect to the new one.
        connectionToken: readConnectionToken(old.home),
        githubToken: token,
        sandbox,
      },
      options.signal,
    );
    replacement.process = launched.identity;
    const draining = await store.registry.update((registry) => {
      ownReplacement(registry, id, launchId).process = launched.identity;
      return claimSwap(registry, id, old.launchId, held.claim);
    });
    if (!draining) return await abandon(context, old, replacement, { kind: "unavailable" });
    const drained = await drainForGood(context, old, old.state, {
      timeoutMs: options.drainTimeoutMs,
      signal: options.signal,
      hurry: NEVER,
      late: options.late,
      stays: true,
      onProgress: options.onProgress,
    });
    if (drained.cut.length > 0 && options.late === "leave") {
      return await abandon(context, old, replacement, { kind: "busy", sessions: drained.cut });
    }
    const outcome = await stopServer(old, { graceMs: TERMINATE_GRACE_MS });
    logStop(old, outcome, { because: replacedBy(launched.identity) });
    const server = await changeClaimed(store, old, (record) => {
      record.runtimePath = runtimePath;
      promote(record, launched.identity, launched.version);
      return record;
    });
    const cut = await allCut(old, drained);
    const detail = cut.length === 0 ? null : `turns cut: ${cut.length}`;
    context.events.note({ type: "server.recycled", user: server.user, serverId: id, detail });
    return {
      kind: "replaced",
      server,
      stopped: { id, outcome: outcome === "terminated" && cut.length === 0 ? "drained" : "killed", cut },
    };
  } catch (error) {
    await abandon(context, old, replacement, null);
    throw error;
  }
}

type Replaceable = ServerRecord & { replacement: Replacement };

function claimReplacement(
  registry: Registry,
  id: string,
  { claim, sandbox }: Required<Pick<Replacement, "claim" | "sandbox">>,
  { config }: PoolContext,
): Replaceable | null {
  const by = closedBy(registry);
  if (by !== null) throw poolDraining(by);
  const server = registry.servers[id];
  if (server === undefined || !isServing(server)) return null;
  if (server.replacement != null && isHeld(server.replacement.claim)) return null;
  const port = choosePort(registry, config.ports, new Set(), null);
  const logStart = logSize(server.home);
  const launchId = randomUUID();
  const replacement = { launchId, port, process: null, claim, startedAt: new Date().toISOString(), logStart, sandbox };
  server.replacement = replacement;
  server.claim = null; // a process that died may have left a claim
  return { ...server, replacement };
}

function claimSwap(registry: Registry, id: string, launchId: string | null, claim: Claim): boolean {
  const server = registry.servers[id];
  if (server === undefined || server.launchId !== launchId || !isServing(server)) return false;
  server.state = "draining";
  server.claim = claim;
  return true;
}

type Abandoned = Pick<Replacement, "launchId" | "process" | "sandbox">;

/** Ends the new process, because it does not replace the running one after all. */
async function abandon<T>(
  { store }: PoolContext,
  { id, home }: Pick<ServerRecord, "id" | "home">,
  { launchId, process, sandbox }: Abandoned,
  result: T,
  because = "it does not replace the running process",
): Promise<T> {
  const outcome = await stopServer({ process, launchId, home: null, sandbox }, { graceMs: 0, force: true });
  if (process !== null) logStop({ home, launchId, process }, outcome, { because });
  await store.registry.update(({ servers }) => {
    const server = servers[id];
    if (server?.replacement?.launchId === launchId) server.replacement = null;
  });
  return result;
}

function ownReplacement(registry: Registry, id: string, launchId: string): Replacement {
  const replacement = registry.servers[id]?.replacement;
  if (replacement?.launchId === launchId) return replacement;
  throw serverTaken(id);
}

function promote(server: ServerRecord, process: NonNullable<ServerRecord["process"]>, version: string): void {
  const { replacement } = server;
  if (replacement == null) throw serverTaken(server.id);
  server.launchId = replacement.launchId;
  server.port = replacement.port;
  server.lastPort = replacement.port;
  server.startedAt = replacement.startedAt;
  if (replacement.logStart === undefined) delete server.logStart;
  else server.logStart = replacement.logStart;
  if (replacement.sandbox === undefined) delete server.sandbox;
  else server.sandbox = replacement.sandbox;
  server.replacement = null;
  recordReady(server, { process, version });
}

/**
 * Finishes a replacement whose command died. If the old process is gone and the new process answers, the new process
 * becomes the server. Otherwise ends the new process. The caller holds the claim. @returns whether the new process is
 * the server
 */
export async function finishReplacement(
  context: PoolContext,
  server: ServerRecord,
  signal: AbortSignal,
): Promise<boolean> {
  const { replacement } = server;
  if (replacement == null) return false;
  const { port, process } = replacement;
  if (!isRunning(server) && process !== null && isAlive(process) && hasPort(process, replacement)) {
    const version = await answerOf(server, port, signal);
    if (version !== null) {
      const old = { ...server, process: endingProcess(server) };
      const outcome = await stopServer({ ...old, home: null }, { graceMs: 0, force: true });
      logStop(old, outcome, { because: replacedBy(process), stopping: server.state === "draining" });
      await changeClaimed(context.store, server, (record) => promote(record, process, version));
      return true;
    }
  }
  await abandon(context, server, replacement, null, "the command that started it had ended");
  return false;
}

function replacedBy({ pid }: ProcessIdentity): string {
  return `process ${pid} replaces it`;
}

interface RollingOptions extends Omit<RecycleOptions, "late"> {
  /** How many servers may refuse turns at the same time. */
  maxUnavailable: number;
}

export interface RollingResult {
  stopped: Stopped[];
  servers: ServerView[];
}

/**
 * Replaces running servers: first a single server (the canary), then at most `maxUnavailable` servers at once. After a
 * failure, begins no further replacement. Skips servers that do not run.
 */
export async function restartRolling(
  pool: Pool,
  ids: readonly string[],
  options: RollingOptions,
): Promise<RollingResult> {
  const result: RollingResult = { stopped: [], servers: [] };
  let failure: { id: string; error: unknown } | undefined;
  const progressOf = addUp(options.onProgress, ids.length);
  const replace = async (id: string) => {
    if (failure !== undefined) return;
    try {
      options.signal.throwIfAborted();
      const { drainTimeoutMs, signal } = options;
      const replaced = await counted(
        progressOf(id),
        1,
        async (onProgress) => await pool.recycle(id, { drainTimeoutMs, late: "cut", signal, onProgress }),
      );
      if (replaced.kind !== "replaced") return;
      result.stopped.push(replaced.stopped);
      result.servers.push(viewServer(replaced.server));
    } catch (error) {
      failure ??= { id, error };
    }
  };
  const [canary, ...rest] = ids;
  if (canary !== undefined) await replace(canary);
  await mapConcurrently(rest, options.maxUnavailable, replace);
  if (failure !== undefined) throw halted(failure, result, ids.length);
  return result;
}

function halted({ id, error }: { id: string; error: unknown }, done: RollingResult, all: number): unknown {
  if (!(error instanceof FleetError)) return error;
  const halt = `Server ${id} could not be replaced and keeps running as before. ${done.servers.length} of ${countOf(all, "server")} ${done.servers.length === 1 ? "was" : "were"} replaced, and the others are unchanged.`;
  return error.reworded(({ message, suggestions }) => ({
    message: `${halt} ${message}`,
    suggestions: [...suggestions, "copilotfleet ps"],
  }));
}
