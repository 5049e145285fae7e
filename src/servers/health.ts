import type { EventLog } from "../base/event.js";
import type { Registry, ServerRecord } from "../base/server.js";
import type { Config } from "../config/schema.js";
import { endOfLog } from "../runtime/files/server-log.js";
import { logStop, stopServer } from "../runtime/process/stop.js";
import type { Store } from "../store/ports.js";
import { changeClaimed, countCrash, isServing, recordEnd } from "./claims.js";
import { HeldClaim } from "./server.js";

const CRASH_LOOP = "crash loop: ";

/**
 * Records why this launch of the server does not answer. With null, records that it answers again. Does nothing if the
 * launch does not run, or while a command has a claim on the server.
 */
export async function recordHealth(store: Store, { id, launchId }: ServerRecord, reason: string | null): Promise<void> {
  await store.registry.update((registry) => {
    const server = idle(registry, id, launchId);
    if (server === null) return;
    if (server.state === "ready" && reason === null) return;
    server.state = reason === null ? "ready" : "unhealthy";
    server.failure = reason;
  });
}

/** Kills a server that hangs, and counts this as a crash. Resolves with true if this call ended the server. */
export async function endHung(
  { store, config, events }: { store: Store; config: Config; events: EventLog },
  { id, launchId }: ServerRecord,
  reason: string,
): Promise<boolean> {
  using held = new HeldClaim();
  const claimed = await store.registry.update((registry) => {
    const server = idle(registry, id, launchId);
    if (server === null) return null;
    server.state = "draining";
    server.claim = held.claim;
    return { ...server };
  });
  if (claimed === null) return false;
  logStop(claimed, await stopServer(claimed, { graceMs: 0, force: true }), { because: `it hung (${reason})` });
  const words = endOfLog(claimed);
  await changeClaimed(store, claimed, (server) => {
    countCrash(server, Date.now(), config.health);
    recordEnd(server, "failed", `it hung (${reason})${words}`);
  });
  events.note({ type: "server.crashed", user: claimed.user, serverId: id, reason: "hung" });
  return true;
}

/** How many times in a row a server that crashes is started again. The next crash abandons it. */
export const MOST_RESTARTS = 5;

export async function recordCrashLoop(store: Store, { id, crashes }: ServerRecord): Promise<void> {
  await store.registry.update(({ servers }) => {
    const server = servers[id];
    if (server === undefined || server.state !== "failed" || server.crashes !== crashes) return;
    if (server.failure?.startsWith(CRASH_LOOP) === true) return; // an earlier supervisor recorded it
    server.failure = `${CRASH_LOOP}it ended ${crashes} times in a row, and is not started again. Last time: ${server.failure ?? "the reason is unknown"}`;
  });
}

/** The record of a running launch. Null if the launch does not run, or a command has a claim on the server. */
function idle(registry: Registry, id: string, launchId: string | null): ServerRecord | null {
  const server = registry.servers[id];
  return server !== undefined && server.launchId === launchId && isServing(server) ? server : null;
}
