import { access, constants, statfs } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { systemCode } from "../../errors.js";
import type { ServerRecord } from "../../model/server.js";
import { isRunning } from "../../pool/server.js";
import { logPath } from "../../runtime/files/server-folder.js";
import { unloadOldest } from "../../sessions/memory/eviction.js";
import { knownLoaded } from "../../sessions/memory/loaded.js";
import type { ServeContext } from "../context.js";
import { rotateLog } from "../logs/log-rotation.js";
import { noteTrouble } from "../trouble.js";

/** The first gc runs soon after the start, but late enough not to slow the start down. */
const FIRST_GC_MS = 60_000;
/** A disk is almost full when its free space is less than this and less than this share of its size. */
const LOW_DISK_BYTES = 64 * 1024 * 1024;
const LOW_DISK_SHARE = 0.02;
/** With less than this not even the registry of a small fleet can be written. */
const FULL_DISK_BYTES = 16 * 1024;
const ROTATE_MS = 30_000;

/** Runs gc every `serve.gcInterval` until the signal aborts. Logs a run that fails, and runs the next one on time. */
export async function collectPeriodically(context: ServeContext, stopping: AbortSignal): Promise<void> {
  const { config, metrics, log } = context;
  const { gcIntervalMs } = config.serve;
  for (let first = true; ; first = false) {
    const waitMs = first ? Math.min(gcIntervalMs, FIRST_GC_MS) : gcIntervalMs;
    if (!(await pause(waitMs, stopping))) return;
    try {
      const result = await context.gc(stopping);
      metrics.gcRan(result);
      const { deleted, skipped, freedBytes, servers } = result;
      const counts = { deleted: deleted.length, skipped: skipped.length, freedBytes, servers: servers.length };
      log(deleted.length + servers.length > 0 ? "info" : "debug", `gc deleted ${deleted.length} sessions`, counts);
    } catch (error) {
      if (stopping.aborted) return;
      metrics.gcFailed();
      noteTrouble(context, "gc failed", error);
    }
  }
}

/** Unloads sessions above `session.maxActive`. Clients that connect directly load sessions without asking the fleet. */
export async function enforceCap(context: ServeContext, server: ServerRecord): Promise<void> {
  const { store, config, metrics, log } = context;
  const excess = knownLoaded(server).length - config.session.maxActive;
  if (excess <= 0) return;
  const options = { store, answerMs: config.health.timeoutMs };
  const { evicted } = await unloadOldest(server, excess, new Set(), options);
  metrics.evicted(evicted.length);
  if (evicted.length > 0)
    log("info", `server ${server.id} had ${excess} sessions too many`, { server: server.id, evicted: evicted.length });
}

/** Rotates server logs that have grown too long, until the signal aborts. */
export async function rotatePeriodically(context: ServeContext, stopping: AbortSignal): Promise<void> {
  while (await pause(ROTATE_MS, stopping)) {
    try {
      await rotateLogs(context, stopping);
    } catch (error) {
      noteTrouble(context, "logs could not be rotated", error);
    }
  }
}

async function rotateLogs(context: ServeContext, stopping: AbortSignal): Promise<void> {
  const { store, config } = context;
  const options = { maxBytes: config.serve.logMaxBytes, keep: config.serve.logFiles, signal: stopping };
  const { servers } = await store.registry.read();
  for (const server of Object.values(servers)) {
    // The start of a server looks for its output after a fixed position in the log, so the log must not be rotated.
    if (!isRunning(server) || server.state === "starting") continue;
    await rotateLog(logPath(server.home), options).catch((error: unknown) => {
      if (stopping.aborted) return;
      noteTrouble(context, `server ${server.id}: its log could not be rotated`, error, { server: server.id });
    });
  }
}

/** Waits this many milliseconds. Resolves with false when the signal aborts first. */
async function pause(ms: number, stopping: AbortSignal): Promise<boolean> {
  await delay(ms, undefined, { signal: stopping, ref: false }).catch(() => undefined);
  return !stopping.aborted;
}

export interface Disk {
  freeBytes: number;
  low: boolean;
  /** Why nothing can be written, in words that follow "the disk". Null when it can. */
  problem: string | null;
}

/** The free space for this user on the disk that holds a file or folder. @throws a system error when it does not exist. */
export async function diskOf(path: string): Promise<Disk> {
  const { bsize, bavail, blocks, files, ffree } = await statfs(path);
  const freeBytes = bsize * bavail;
  // Some file systems have no fixed number of files, and report 0 for both.
  const full = freeBytes < FULL_DISK_BYTES || (files > 0 && ffree === 0);
  return {
    freeBytes,
    low: freeBytes < Math.min(LOW_DISK_BYTES, bsize * blocks * LOW_DISK_SHARE),
    problem: full ? "is full" : await unwritable(path),
  };
}

/** Finds, for example, a disk that the kernel has made read-only after an error. */
async function unwritable(path: string): Promise<string | null> {
  try {
    await access(path, constants.W_OK);
    return null;
  } catch (error) {
    return `cannot be written (${systemCode(error) ?? String(error)})`;
  }
}
