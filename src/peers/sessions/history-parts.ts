import { NEVER } from "../../runtime/clock.js";
import { type HistoryFate, type HistoryPosition, nextPiece, PIECE_BYTES } from "../../runtime/history/part.js";
import type { SessionFinder } from "../../sessions/find.js";
import { sessionNotFound } from "../../sessions/problems.js";
import type { GatherSessionsContext } from "../gather.js";
import type { HistoryFeeds } from "./feeds.js";

export interface HistoryContext extends GatherSessionsContext {
  finder: SessionFinder;
  feeds: HistoryFeeds;
}

export interface HistoryPartsRequest {
  user: string;
  /** Also yields what is added later, until the signal aborts. */
  follow?: boolean | undefined;
  /**
   * After how many milliseconds to yield a part even without a change. Default, and for undefined: only after a change.
   */
  atLeastMs?: () => number | undefined;
  signal?: AbortSignal | undefined;
}

/** A piece of a history. The next part is read only when the consumer asks for it. */
export interface ReadPart {
  bytes: Buffer;
  atEnd: boolean;
  /** `replaced`: the next part is the beginning of another history. */
  fate: Exclude<HistoryFate, "gone">;
}

/**
 * Yields the history of a session on any host, a piece at a time, so that a long history does not fill the memory.
 * Between pieces, lets other work in this process run. Checks for each megabyte that the user may still read the session.
 *
 * @throws FleetError `FLEET_SESSION_NOT_FOUND` when the user may not use the session; `FLEET_SESSION_LOST`; and the error of
 * a host that cannot be reached.
 */
export async function* historyParts(
  { hosts, finder, feeds }: HistoryContext,
  id: string,
  { user, follow = false, atLeastMs, signal = NEVER }: HistoryPartsRequest,
): AsyncGenerator<ReadPart, void, undefined> {
  using following = follow ? feeds.follow(id) : null;
  let from: HistoryPosition | undefined;
  for (;;) {
    signal.throwIfAborted();
    const { version, fate, at, ...part } = await finder.whereItIs(id, user, async (record, host) => {
      const version = await following?.feed.aim(record, host);
      const there = hosts.at(host === null ? { here: true } : { here: false, host });
      return { version, ...(await there.history({ id, user, from }, { signal })) };
    });
    if (fate === "gone") throw sessionNotFound(id);
    from = fate === "replaced" ? undefined : (at ?? undefined);
    const bytes = Buffer.from(part.bytes, "base64");
    for (let end = 0; ; ) {
      const begin = end;
      end = Math.min(begin + PIECE_BYTES, bytes.length);
      const isLast = end === bytes.length;
      yield { atEnd: part.atEnd && isLast, fate, bytes: bytes.subarray(begin, end) };
      if (isLast) break;
      await nextPiece();
      signal.throwIfAborted();
    }
    if (fate === "replaced" || !part.atEnd) {
      await nextPiece();
      continue;
    }
    if (following === null || version === undefined) return;
    await following.feed.changed(version, signal, atLeastMs?.());
    if (signal.aborted) return;
  }
}
