import type { FleetError } from "../errors.js";
import { markUse, type UseMark } from "../pool/use-marks.js";
import { pause } from "../runtime/deadline.js";
import type { ServerRecord } from "../store/store.js";
import type { TurnLease } from "./lease-seen.js";
import { isStoreTrouble, serverDraining, sessionBusy } from "./problems.js";

export interface Permit {
  lease: TurnLease;
  /** Taken for this turn: to be released after it. */
  owned: boolean;
}

export interface TurnTaking {
  sessionId: string;
  /** The lease that a turn needs, or null if it needs none; with `always` it does. */
  permit(how: { always: boolean }): Promise<Permit | null>;
  /** The server on which the turn is to be, known only under the lease if there is one. Asked again when it is not that. */
  server(lease: TurnLease | undefined): Promise<ServerRecord>;
  /**
   * Whether that server still takes turns, and still has the session. Asked when the use is marked: whoever drains the one, or
   * takes away the other, looks at marks after that.
   */
  admitted(server: ServerRecord): Promise<boolean>;
  /** The turn is over, and its lease could not be given back: it ends by itself. */
  unreleased(error: FleetError): void;
  /** How long to wait for others, in milliseconds. */
  waitMs: number;
  signal: AbortSignal | undefined;
}

const SHARED_POLL_MS = 5;
const DRAIN_POLL_MS = 20;

/**
 * Runs `work` while nobody else of this fleet uses the session: two turns at once would both take the later one's
 * answer. A turn that finds a private session unused needs no lease; whoever finds it used takes one, and so queues.
 *
 * @throws what `work` throws; FleetError `FLEET_SESSION_LOCKED`, `FLEET_SESSION_BUSY`, `FLEET_SERVER_DRAINING`; the
 * signal's own reason.
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

/** Marks the use on the session's server, once that takes turns: after one that is being drained comes another. */
async function markAdmitted(turn: TurnTaking, lease: TurnLease | undefined): Promise<UseMark> {
  const until = performance.now() + turn.waitMs;
  for (;;) {
    const server = await turn.server(lease);
    const mark = await markUse(server, turn.sessionId, { waitMs: until - performance.now(), signal: turn.signal });
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

/** Waits for whoever was first and went without a lease, or is just loading the session; nobody else begins. */
async function untilAlone(mark: UseMark, { sessionId, waitMs, signal }: TurnTaking): Promise<void> {
  const until = performance.now() + waitMs;
  while (mark.isShared()) {
    if (performance.now() > until) throw sessionBusy(sessionId);
    await pause(SHARED_POLL_MS, signal);
  }
}
