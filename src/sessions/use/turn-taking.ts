import type { FleetError } from "../../errors.js";
import type { ServerRecord } from "../../model/server.js";
import { setUseMarker, type UseMarker } from "../../pool/use-markers.js";
import { pause } from "../../runtime/deadline.js";
import type { TurnLease } from "../leases/seen.js";
import { isStoreTrouble, serverDraining, sessionBusy } from "../problems.js";
import type { Permit } from "./permit.js";

export interface TurnTaking {
  sessionId: string;
  /** The lease for the turn, or null if the turn needs none. With `always`, every turn needs one. */
  permit(how: { always: boolean }): Promise<Permit | null>;
  /** The server for the turn. If there is a lease, it must be held first. Called again if `admitted` refuses the server. */
  server(lease: TurnLease | undefined): Promise<ServerRecord>;
  /**
   * Whether that server still takes turns, and still has the session. Called under the use marker. A drain is recorded first
   * and then looks for use markers. A move of the session sets its eviction marker first and then looks for them. So either
   * this call notices the other process, or the other process notices the use marker.
   */
  admitted(server: ServerRecord): Promise<boolean>;
  /** Called when the turn is over and its lease could not be given back. The lease then ends by itself. */
  unreleased(error: FleetError): void;
  /** How long to wait for others, in milliseconds. */
  waitMs: number;
  signal: AbortSignal | undefined;
}

const SHARED_POLL_MS = 5;
const DRAIN_POLL_MS = 20;

/**
 * Runs `work` while nobody else of this fleet uses the session, because two turns at once would both take the later one's
 * answer. A turn that finds a private session unused needs no lease. A turn that finds it in use takes the lease, and so
 * queues.
 *
 * @throws the error of `work`; FleetError `FLEET_SESSION_LOCKED`, `FLEET_SESSION_BUSY`, `FLEET_SERVER_DRAINING`; the
 * signal's own reason when it aborts.
 */
export async function takeTurn<T>(turn: TurnTaking, work: (lease: TurnLease | undefined) => Promise<T>): Promise<T> {
  let permit = await turn.permit({ always: false });
  try {
    let mark = await markAdmitted(turn, permit?.lease);
    try {
      if (permit === null && mark.isShared()) {
        mark[Symbol.dispose]();
        permit = await turn.permit({ always: true });
        mark = await markAdmitted(turn, permit?.lease);
      }
      if (permit !== null) await untilAlone(mark, turn);
      return await work(permit?.lease);
    } finally {
      mark[Symbol.dispose]();
    }
  } finally {
    if (permit?.owned === true) await giveBack(permit.lease, turn);
  }
}

async function giveBack(lease: TurnLease, turn: TurnTaking): Promise<void> {
  try {
    await lease.release();
  } catch (error) {
    if (!isStoreTrouble(error)) throw error;
    turn.unreleased(error);
  }
}

/** Sets the use marker on the session's server. If that server is being drained, tries again with its successor. */
async function markAdmitted(turn: TurnTaking, lease: TurnLease | undefined): Promise<UseMarker> {
  const until = performance.now() + turn.waitMs;
  for (;;) {
    const server = await turn.server(lease);
    const mark = await setUseMarker(server, turn.sessionId, { waitMs: until - performance.now(), signal: turn.signal });
    if (mark === null) throw sessionBusy(turn.sessionId);
    try {
      if (await turn.admitted(server)) return mark;
    } catch (error) {
      mark[Symbol.dispose]();
      throw error;
    }
    mark[Symbol.dispose]();
    if (performance.now() > until) throw serverDraining(server.id);
    await pause(DRAIN_POLL_MS, turn.signal);
  }
}

/** Waits for an earlier turn without a lease, or for a load. No other turn begins, because this one has the lease. */
async function untilAlone(mark: UseMarker, { sessionId, waitMs, signal }: TurnTaking): Promise<void> {
  const until = performance.now() + waitMs;
  while (mark.isShared()) {
    if (performance.now() > until) throw sessionBusy(sessionId);
    await pause(SHARED_POLL_MS, signal);
  }
}
