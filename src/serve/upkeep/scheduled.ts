import { countOf } from "../../config/values/text.js";
import { FleetError, isFleetError } from "../../errors.js";
import type { ServerRecord } from "../../model/server.js";
import { isRunning } from "../../pool/server.js";
import type { Clock } from "../../runtime/clock.js";
import { logPath } from "../../runtime/files/server-folder.js";
import { unloadOldest } from "../../sessions/memory/eviction.js";
import { knownLoaded } from "../../sessions/memory/open-notes.js";
import type { ServeContext } from "../context.js";
import { attempt, logFailure } from "../failures.js";
import { rotateLog } from "../logs/log-rotation.js";

/** How long after the start the first gc runs, in milliseconds: soon, but late enough not to slow the start down. */
const FIRST_GC_MS = 60_000;
const GC_MS = 3_600_000;
const ROTATE_MS = 30_000;
/** The size at which a server's log is rotated, and the number of rotated logs to keep in addition to the current one. */
const LOG_BYTES = 10 * 1024 * 1024;
const LOG_FILES = 3;

type GcContext = Pick<ServeContext, "clock" | "config" | "host" | "metrics" | "log" | "takeWarnings">;

/** Runs gc every hour until the signal aborts. */
export async function collectPeriodically(context: GcContext, stopping: AbortSignal): Promise<void> {
  const { clock, config, metrics, log } = context;
  for (let first = true; ; first = false) {
    if (!(await pause(clock, first ? FIRST_GC_MS : GC_MS, stopping))) return;
    try {
      const result = await context.host.gc({ ttlMs: config.session.ttlMs, dryRun: false }, { signal: stopping });
      metrics.gcRan(result);
      const { deleted, skipped, freedBytes, servers, unreadable } = result;
      for (const { id, code, message } of unreadable)
        logFailure(context, `gc left session ${id} alone`, new FleetError(code, message), { session: id });
      const counts = { deleted: deleted.length, skipped: skipped.length, freedBytes, servers: servers.length };
      log(
        deleted.length + servers.length > 0 ? "info" : "debug",
        `gc deleted ${countOf(deleted.length, "session")}`,
        counts,
      );
    } catch (error) {
      if (stopping.aborted) return;
      metrics.gcFailed();
      logFailure(context, "gc failed", error);
    }
    for (const warning of context.takeWarnings()) log("warn", warning);
  }
}

/**
 * Unloads the sessions beyond `session.maxActive`, because clients that connect directly load sessions without limit.
 */
export async function enforceCap(context: ServeContext, server: ServerRecord): Promise<void> {
  const { store, config, metrics, host, log, events } = context;
  const { id } = server;
  try {
    const excess = knownLoaded(server).length - config.session.maxActive;
    if (excess <= 0) return;
    const options = { store, events, answerMs: config.health.timeoutMs };
    const { evicted } = await unloadOldest(server, excess, new Set(), options);
    metrics.evicted(evicted.length);
    host.ring.evicted(evicted.length);
    if (evicted.length > 0)
      log("info", `server ${id} had ${countOf(excess, "session")} too many`, { server: id, evicted: evicted.length });
  } catch (error) {
    // Only log the error, because the monitor acts if the server does not answer.
    if (!isFleetError(error)) throw error;
    logFailure(context, `server ${id}: its sessions could not be unloaded`, error, { server: id });
  }
}

/**
 * Until the signal aborts, regularly adds up the lines of the ledger, and sends the lines that processes of this host
 * could not send to the store, for example because they were killed.
 */
export async function sendUsage({ clock, store }: ServeContext, stopping: AbortSignal): Promise<void> {
  do await store.usage.settled();
  while (await pause(clock, ROTATE_MS, stopping));
}

/** Rotates server logs that have grown too long, until the signal aborts. */
export async function rotatePeriodically(context: ServeContext, stopping: AbortSignal): Promise<void> {
  while (await pause(context.clock, ROTATE_MS, stopping)) {
    await attempt(context, "logs could not be rotated", () => rotateLogs(context, stopping));
  }
}

async function rotateLogs(context: ServeContext, stopping: AbortSignal): Promise<void> {
  const options = { maxBytes: LOG_BYTES, keep: LOG_FILES, signal: stopping };
  const { servers } = await context.store.registry.read();
  for (const server of Object.values(servers)) {
    // Skip a server that is starting, because the start reads its log from a fixed position.
    if (!isRunning(server) || server.state === "starting") continue;
    await rotateLog(logPath(server.home), options).catch((error: unknown) => {
      if (stopping.aborted) return;
      logFailure(context, `server ${server.id}: its log could not be rotated`, error, { server: server.id });
    });
  }
}

/** @returns false when `stopping` has aborted */
async function pause(clock: Clock, ms: number, stopping: AbortSignal): Promise<boolean> {
  await clock.wait(ms, { signal: stopping, ref: false }).catch(() => "stopping");
  return !stopping.aborted;
}
