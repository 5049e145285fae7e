import type { Registry, ServerRecord, Store } from "../store/store.js";
import { ownClaim } from "./claim.js";
import { type DrainOptions, type DrainResult, drainServer, turnsUnderWay } from "./drain.js";

export interface EndingOptions extends DrainOptions {
  /** What if turns outlast the deadline: they are cut, or the server serves on and nothing is recorded. */
  late: "cut" | "leave";
  /** It should run nevertheless: it is to be started again. */
  stays: boolean;
}

/**
 * Drains a server that this process has claimed, and records that it ends from here on, also when this process dies:
 * nobody may take it for one that serves on any more. Resolves with what is going to be cut; the signal has to follow at
 * once.
 *
 * Recording takes milliseconds, in which a client that connects directly may begin a turn: then the record is put back,
 * and the drain goes on for as long as it may.
 *
 * @throws as `drainServer`; FleetError `FLEET_SERVER_CONFLICT`.
 */
export async function drainForGood(
  store: Store,
  server: ServerRecord,
  { late, stays, ...options }: EndingOptions,
): Promise<DrainResult> {
  const { id, launchId } = server;
  const change = async (how: (record: Registry["servers"][string]) => void) =>
    await store.updateRegistry((registry) => how(ownClaim(registry, id, launchId)));
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
