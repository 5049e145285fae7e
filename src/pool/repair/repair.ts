import { writeSize } from "../../config/values/size.js";
import type { ServerRecord } from "../../model/server.js";
import { appendToLog, endOfLog } from "../../runtime/files/server-log.js";
import { describeEnd, logStop, UNFINISHED } from "../../runtime/process/server-end.js";
import { stopServer } from "../../runtime/process/stop.js";
import { limitsReached } from "../../sandbox/limits/cgroups.js";
import { HeldClaim, isHeld } from "../claims/held-claim.js";
import { changeClaimed, countCrash, endingProcess, giveUpStop, recordEnd } from "../claims/transitions.js";
import { mapConcurrently, STARTS_AT_ONCE } from "../concurrency.js";
import { finishReplacement } from "../recycle/recycle.js";
import { isBroken, isRunning } from "../server.js";
import type { PoolContext } from "../start/surroundings.js";
import { TERMINATE_GRACE_MS } from "../stop/stop.js";
import { adoptServer } from "./adopt.js";

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
