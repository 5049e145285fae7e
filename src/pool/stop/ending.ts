import type { Registry } from "../../model/registry.js";
import type { ServerRecord } from "../../model/server.js";
import type { Store } from "../../store/ports.js";
import { ownClaim } from "../claims/claim.js";
import { type DrainOptions, type DrainResult, drainServer, turnsUnderWay } from "./drain.js";

export interface EndingOptions extends DrainOptions {
  /** Turns that outlast the deadline: `cut` them, or `leave` the server running and record nothing. */
  late: "cut" | "leave";
  /** Whether the server should still run and will be started again. */
  stays: boolean;
}

/**
 * Drains a server that this process has claimed, and records that the server is ending. The record stays even if this
 * process dies, so that nobody expects the server to keep running. Resolves with the sessions whose turn will be cut. The
 * caller must send the signal at once.
 *
 * Recording takes milliseconds, in which a client that connects directly may begin a turn. If one did, this restores the
 * record and drains again while there is time.
 *
 * @throws as `drainServer`; FleetError `FLEET_SERVER_CONFLICT` when another command took over the server.
 */
export async function drainForGood(
  store: Store,
  server: ServerRecord,
  { late, stays, ...options }: EndingOptions,
): Promise<DrainResult> {
  const { id, launchId } = server;
  const change = async (how: (record: Registry["servers"][string]) => void) =>
    await store.registry.update((registry) => how(ownClaim(registry, id, launchId)));
  const until = performance.now() + options.timeoutMs;
  const unloaded = new Set<string>();
  for (;;) {
    const timeoutMs = Math.max(0, until - performance.now());
    const drained = await drainServer(server, { ...options, timeoutMs });
    for (const session of drained.unloaded) unloaded.add(session);
    const result = { cut: drained.cut, unloaded: [...unloaded] };
    if (drained.cut.length > 0 && late === "leave") return result;
    await change((record) => {
      record.process = null;
      if (!stays) record.desired = "stopped";
    });
    if (drained.cut.length > 0 || options.hurry.aborted || performance.now() >= until) return result;
    if ((await turnsUnderWay(server, options.answerMs)).length === 0) return result;
    await change((record) => {
      record.process = server.process;
      if (server.desired === undefined) delete record.desired;
      else record.desired = server.desired;
    });
  }
}
