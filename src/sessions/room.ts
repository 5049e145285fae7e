import type { Config } from "../config/schema.js";
import { isTimeout, pause } from "../runtime/deadline.js";
import type { ServerRecord, Store } from "../store/store.js";
import { admit } from "./eviction.js";
import { serverDraining } from "./problems.js";

export interface RoomContext {
  store: Store;
  config: Config;
  /** Knows whether a launch of a server still takes turns, and still has the session. */
  sessions: { admitted(server: ServerRecord, sessionId: string): Promise<boolean> };
}

export interface RoomRequest {
  sessionId: string;
  /** The server that the session is opened on. */
  server: ServerRecord;
  /** Where to go when that one is being drained, or has the session no more. */
  next: () => Promise<ServerRecord>;
  /** The server on which a turn of the caller's is marked: its drain waits for that turn, so it is not asked. */
  marked: ServerRecord | undefined;
  /** How long to wait for a loaded session to become idle, in milliseconds. */
  waitMs: number;
  signal: AbortSignal;
}

const DRAIN_POLL_MS = 20;

/**
 * Runs `load` with room for the session in its server's memory, within the cap, and its use marked there meanwhile. A server
 * that is being drained is left for the one that comes after it, one from which the session was taken for the one that it is on.
 *
 * @throws FleetError `FLEET_SESSIONS_EXHAUSTED`, `FLEET_SERVER_DRAINING`, `FLEET_POOL_DRAINING`; what `load` and `next` throw; the
 * signal's own reason if the caller gave up.
 */
export async function withRoom<T>(
  { store, config, sessions }: RoomContext,
  { sessionId, server, next, marked, waitMs, signal }: RoomRequest,
  load: (server: ServerRecord) => Promise<T>,
): Promise<T> {
  const room = { store, answerMs: config.health.timeoutMs, maxActive: config.session.maxActive, waitMs, signal };
  for (let target = server; ; target = await next()) {
    {
      using _use = await admit(target, sessionId, room);
      // Under the mark: from here on a drain waits for this one. Who had marked it before is waited for already.
      if (target === marked || (await sessions.admitted(target, sessionId))) return await load(target);
    }
    if (signal.aborted) throw isTimeout(signal.reason) ? serverDraining(target.id) : signal.reason;
    await pause(DRAIN_POLL_MS, undefined);
  }
}
