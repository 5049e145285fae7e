import { NEVER, pause } from "../../runtime/deadline.js";
import type { HistoryFate, HistoryPosition } from "../../runtime/history/part.js";
import type { SessionFinder } from "../../sessions/find.js";
import { sessionNotFound } from "../../sessions/problems.js";
import type { GatherSessionsContext } from "../gather.js";

export interface HistoryContext extends GatherSessionsContext {
  finder: SessionFinder;
}

export interface HistoryPartsRequest {
  user: string;
  /** Also yields what is added later, until the signal aborts. */
  follow?: boolean | undefined;
  signal?: AbortSignal | undefined;
}

/** A piece of a history. The next part is read only when the consumer asks for it. */
export interface ReadPart {
  bytes: Buffer;
  atEnd: boolean;
  /** `replaced`: the next part is the beginning of another history. */
  fate: Exclude<HistoryFate, "gone">;
}

const FOLLOW_POLL_MS = 250;
/** Longer for a session on another host, because each look opens a connection to that host. */
const FOLLOW_ELSEWHERE_POLL_MS = 1_000;

/**
 * Yields the history of a session on any host, a part at a time, so that a long history does not fill the memory. Checks for
 * each part that the user may still read the session.
 *
 * @throws FleetError `FLEET_SESSION_NOT_FOUND` when the user may not use the session; `FLEET_SESSION_LOST`; and the error of
 * a host that cannot be reached.
 */
export async function* historyParts(
  { hosts, finder }: HistoryContext,
  id: string,
  { user, follow = false, signal = NEVER }: HistoryPartsRequest,
): AsyncGenerator<ReadPart, void, undefined> {
  let from: HistoryPosition | undefined;
  for (;;) {
    signal.throwIfAborted();
    const { isHere, fate, at, ...part } = await finder.whereItIs(id, user, async (_, host) => {
      const there = hosts.at(host === null ? { here: true } : { here: false, host });
      return { isHere: host === null, ...(await there.history({ id, user, from }, { signal })) };
    });
    if (fate === "gone") throw sessionNotFound(id);
    from = fate === "replaced" ? undefined : (at ?? undefined);
    yield { atEnd: part.atEnd, fate, bytes: Buffer.from(part.bytes, "base64") };
    if (fate === "replaced" || !part.atEnd) continue;
    if (!follow) return;
    await pause(isHere ? FOLLOW_POLL_MS : FOLLOW_ELSEWHERE_POLL_MS, signal).catch(() => undefined);
    if (signal.aborted) return;
  }
}
