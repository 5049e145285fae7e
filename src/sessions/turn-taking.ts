import { setTimeout as delay } from "node:timers/promises";
import type { ServerRecord } from "../store/store.js";
import type { HeldLease } from "./leases.js";
import { sessionBusy } from "./problems.js";
import { markUse, type UseMark } from "./use-marks.js";

export interface Permit {
  lease: HeldLease;
  /** Taken for this turn: to be released after it. */
  owned: boolean;
}

export interface TurnTaking {
  sessionId: string;
  /** The lease that a turn needs, or null if it needs none; with `always` it does. */
  permit(how: { always: boolean }): Promise<Permit | null>;
  /** The server on which the turn is to be, known only under the lease if there is one. */
  server(lease: HeldLease | undefined): Promise<ServerRecord>;
  /** How long to wait for others, in milliseconds. */
  waitMs: number;
  signal: AbortSignal | undefined;
}

const SHARED_POLL_MS = 5;

/**
 * Runs `work` while nobody else of this fleet uses the session: two turns at once would both take the later one's
 * answer. A turn that finds a private session unused needs no lease; whoever finds it used takes one, and so queues.
 *
 * @throws what `work` throws; FleetError `FLEET_SESSION_LOCKED`, `FLEET_SESSION_BUSY`.
 */
export async function takeTurn<T>(turn: TurnTaking, work: (lease: HeldLease | undefined) => Promise<T>): Promise<T> {
  let permit = await turn.permit({ always: false });
  try {
    let mark = await markUse(await turn.server(permit?.lease), turn.sessionId);
    try {
      if (permit === null && mark.isShared()) {
        mark[Symbol.dispose]();
        permit = await turn.permit({ always: true });
        mark = await markUse(await turn.server(permit?.lease), turn.sessionId);
      }
      if (permit !== null) await untilAlone(mark, turn);
      return await work(permit?.lease);
    } finally {
      mark[Symbol.dispose]();
    }
  } finally {
    if (permit?.owned === true) await permit.lease.release();
  }
}

/** Waits for whoever was first and went without a lease, or is just loading the session; nobody else begins. */
async function untilAlone(mark: UseMark, { sessionId, waitMs, signal }: TurnTaking): Promise<void> {
  const until = performance.now() + waitMs;
  while (mark.isShared()) {
    if (performance.now() > until) throw sessionBusy(sessionId);
    await delay(SHARED_POLL_MS, undefined, { signal });
  }
}
