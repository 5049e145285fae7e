import { existsSync, readdirSync } from "node:fs";
import type { EventLog } from "../base/event.js";
import { serverIdOf } from "../base/ids.js";
import { ifThere } from "../base/if-there.js";
import type { Registry, ServerRecord } from "../base/server.js";
import { writeSize } from "../base/values/measures.js";
import type { Config } from "../config/schema.js";
import { homeOf, logPath, serverFolder } from "../runtime/files/server-folder.js";
import { appendToLog, endOfLog, portOfLaunch } from "../runtime/files/server-log.js";
import { processesByLaunch, writersOf } from "../runtime/process/process-table.js";
import { describeEnd, logStop, stopServer, UNFINISHED } from "../runtime/process/stop.js";
import { limitsReached } from "../sandbox/limits.js";
import type { Store } from "../store/store.js";
import { mapConcurrently, STARTS_AT_ONCE } from "./admission.js";
import { changeClaimed, countCrash, endingProcess, giveUpStop, isServing, recordEnd } from "./claims.js";
import { finishReplacement } from "./recycle.js";
import { HeldClaim, isBroken, isHeld, isRunning } from "./server.js";
import { adoptServer, newRecord } from "./start.js";
import { TERMINATE_GRACE_MS } from "./stop.js";
import type { PoolContext } from "./surroundings.js";

/**
 * Repairs every record that a crash left broken, or only the record of the server `only`. Resolves with the ids of the
 * repaired servers.
 */
export async function repairRecords(context: PoolContext, signal: AbortSignal, only?: string): Promise<string[]> {
  using held = new HeldClaim();
  const claimed = await context.store.registry.update((registry) =>
    Object.values(registry.servers).filter((server) => {
      if (only !== undefined && server.id !== only) return false;
      if (!isBroken(server) || isHeld(server.claim)) return false;
      if (server.state === "draining" && isRunning(server)) giveUpStop(server, "ready");
      if (server.replacement == null && !isBroken(server)) return false;
      server.claim = held.claim;
      return true;
    }),
  );
  await mapConcurrently(claimed, STARTS_AT_ONCE, async (server) => await repair(context, server, signal));
  return claimed.map(({ id }) => id);
}

async function repair(context: PoolContext, server: ServerRecord, signal: AbortSignal): Promise<void> {
  const { store } = context;
  if (await finishReplacement(context, server, signal)) return;
  if (server.state === "starting") await adoptServer(store, server, signal);
  else if (isRunning(server)) {
    await changeClaimed(store, server, (record) => {
      record.claim = null;
    });
  } else await reap(context, server, server.state === "draining" ? "stopped" : "failed");
}

/**
 * The second half of a sentence that names the memory limit as the likely cause of a server's end. Empty if the kernel
 * killed no process of the server at that limit.
 */
function describeKills({ sandbox }: ServerRecord): string {
  const { limits } = sandbox ?? {};
  if (limits === undefined) return "";
  const { memory: kills } = limitsReached(limits, null);
  if (kills === 0 || limits.memory === null) return "";
  return `, after the kernel had killed ${kills === 1 ? "1 process" : `${kills} processes`} of the server at sandbox.memory (${writeSize(limits.memory)})`;
}

/** Ends the processes that are left of a dead server, and records the server's end. */
async function reap(
  { store, config, events }: PoolContext,
  server: ServerRecord,
  state: "stopped" | "failed",
): Promise<void> {
  const ended = { ...server, process: endingProcess(server) };
  const kills = describeKills(server);
  const outcome = await stopServer(ended, { graceMs: TERMINATE_GRACE_MS });
  logStop(ended, outcome, { because: UNFINISHED, stopping: state === "stopped" });
  if (kills !== "") appendToLog(server.home, `The server ended${kills}.`);
  const failure = state === "failed" ? `${describeEnd(server)}${kills}${endOfLog(server)}` : null;
  await changeClaimed(store, server, (record) => {
    if (state === "failed") countCrash(record, Date.now(), config.health);
    recordEnd(record, state, failure);
  });
  const type = state === "failed" ? "server.crashed" : "server.stopped";
  events.note({ type, user: server.user, serverId: server.id, reason: state === "failed" ? "ended" : null });
}

/**
 * Finds this host's servers by their folders and processes, for a registry that cannot be read. A server with a process
 * counts as starting. The next repair adopts it, after the process has proved that it is this server.
 *
 * @param users the ids of users who may have a server
 * @returns the records, and the ids of the folders whose user is not known
 */
export function findServers(
  stateRoot: string,
  users: Iterable<string>,
): { servers: ServerRecord[]; unknown: string[] } {
  const owners = new Map([...users].map((user) => [serverIdOf(user), user]));
  const launches = [...processesByLaunch(stateRoot)];
  const servers: ServerRecord[] = [];
  const unknown: string[] = [];
  for (const id of ifThere(() => readdirSync(serverFolder(stateRoot, ""))) ?? []) {
    const home = homeOf(stateRoot, id);
    if (!existsSync(home)) continue;
    const isShared = /^shared-\d+$/.test(id);
    const user = owners.get(id) ?? userIn(id);
    if (user === null && !isShared) {
      unknown.push(id);
      continue;
    }
    const record = newRecord(
      stateRoot,
      isShared ? { id, user: null, isolation: "shared" } : { id, user, isolation: "per-user" },
    );
    const writers = new Set(writersOf(logPath(home)).map(({ pid }) => pid));
    const launch = launches.find(([, found]) => found.some(({ identity }) => writers.has(identity.pid)));
    const port = portOfLaunch(home);
    servers.push({
      ...record,
      lastPort: port,
      ...(launch === undefined || port === null ? { state: "stopped" as const } : { launchId: launch[0], port }),
    });
  }
  return { servers, unknown };
}

/** The user whose server has this id, if the user's id is the beginning of it. */
function userIn(id: string): string | null {
  const user = id.replace(/-[0-9a-f]{12}$/, "");
  return serverIdOf(user) === id ? user : null;
}

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

export async function recordCrashLoop(store: Store, { id, crashes }: ServerRecord, restarts: number): Promise<void> {
  await store.registry.update(({ servers }) => {
    const server = servers[id];
    if (server === undefined || server.state !== "failed" || server.crashes !== crashes) return;
    if (server.failure?.startsWith(CRASH_LOOP) === true) return; // an earlier supervisor recorded it
    server.failure = `${CRASH_LOOP}it ended ${crashes} times in a row, and is not started again (health.restarts is ${restarts}). Last time: ${server.failure ?? "the reason is unknown"}`;
  });
}

/** The record of a running launch. Null if the launch does not run, or a command has a claim on the server. */
function idle(registry: Registry, id: string, launchId: string | null): ServerRecord | null {
  const server = registry.servers[id];
  return server !== undefined && server.launchId === launchId && isServing(server) ? server : null;
}
