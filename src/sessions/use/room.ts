import type { Config } from "../../config/schema.js";
import type { ServerRecord } from "../../model/server.js";
import { setUseMarker } from "../../pool/use-markers.js";
import { isTimeout, pause } from "../../runtime/deadline.js";
import type { Store } from "../../store/ports.js";
import { exhausted, makeRoom } from "../memory/eviction.js";
import { serverDraining, sessionBusy } from "../problems.js";

export interface RoomContext {
  store: Store;
  config: Config;
  /** Checks whether a launch of a server still takes turns, and still has the session. */
  sessions: { admitted(server: ServerRecord, sessionId: string): Promise<boolean> };
}

export interface RoomRequest {
  sessionId: string;
  /** The server that the session is opened on. */
  server: ServerRecord;
  /** Finds the server to use if that one is being drained or no longer has the session. */
  next: () => Promise<ServerRecord>;
  /** The server on which the caller's turn has a use marker. It is not checked, because its drain waits for that turn. */
  marked: ServerRecord | undefined;
  /** How long to wait for a loaded session to become idle, in milliseconds. */
  waitMs: number;
  signal: AbortSignal;
}

const DRAIN_POLL_MS = 20;

/**
 * Makes room for a session in its server's memory, within the cap, and runs `load` under a use marker. If the server is
 * being drained, continues with its successor. If the session was moved to another server, continues with that one.
 *
 * @throws FleetError `FLEET_SESSIONS_EXHAUSTED`, `FLEET_SESSION_BUSY`, `FLEET_SERVER_DRAINING`, `FLEET_POOL_DRAINING`; the
 * errors of `load` and `next`; the signal's own reason when the caller gives up.
 */
export async function withRoom<T>(
  { store, config, sessions }: RoomContext,
  { sessionId, server, next, marked, waitMs, signal }: RoomRequest,
  load: (server: ServerRecord) => Promise<T>,
): Promise<T> {
  const eviction = { store, answerMs: config.health.timeoutMs };
  const until = performance.now() + waitMs;
  for (let target = server; ; target = await next()) {
    {
      using marker = await setUseMarker(target, sessionId, { waitMs: until - performance.now(), signal });
      if (marker === null) throw sessionBusy(sessionId);
      while (!(await makeRoom(target, sessionId, config.session.maxActive, eviction))) {
        if (signal.aborted && !isTimeout(signal.reason)) throw signal.reason;
        if (signal.aborted || performance.now() > until) throw exhausted(target, config.session.maxActive);
        await pause(50, undefined);
      }
      // Check this only under the use marker, because a drain waits for the marker. If the caller's turn already has a
      // marker on this server, the drain waits for that turn, so there is nothing to check.
      if (target === marked || (await sessions.admitted(target, sessionId))) return await load(target);
    }
    if (signal.aborted) throw isTimeout(signal.reason) ? serverDraining(target.id) : signal.reason;
    await pause(DRAIN_POLL_MS, undefined);
  }
}
