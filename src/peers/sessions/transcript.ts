import { FleetError, quote } from "../../errors.js";
import { NEVER, pause } from "../../runtime/deadline.js";
import type { HistoryPosition } from "../../runtime/history/part.js";
import { Transcriber, type TranscriptEntry } from "../../runtime/history/transcript.js";
import type { SessionFinder } from "../../sessions/find.js";
import { sessionNotFound } from "../../sessions/problems.js";
import { type GatherSessionsContext, viewSessionOf } from "../gather.js";

export interface TranscriptContext extends GatherSessionsContext {
  finder: SessionFinder;
}

export interface TranscriptRequest {
  user: string;
  /** Yields only this many turns, the last ones. Default: all turns. */
  turns?: number | undefined;
  /** Also yields the entries that are added later, until the signal aborts. */
  follow?: boolean | undefined;
  signal?: AbortSignal | undefined;
}

const FOLLOW_POLL_MS = 250;
/** Longer for a session on another host, because each look opens a connection to that host. */
const FOLLOW_ELSEWHERE_POLL_MS = 1_000;

/**
 * Yields the conversation of a session on any host. Reads the history a part at a time, so a long history does not fill the
 * memory. Warns about lines that cannot be read.
 *
 * @throws FleetError `FLEET_SESSION_NOT_FOUND` when the user may not use the session; `FLEET_SESSION_LOST`; and the error of
 * a host that cannot be reached.
 */
export async function* readTranscript(
  context: TranscriptContext,
  id: string,
  { user, turns, follow = false, signal = NEVER }: TranscriptRequest,
): AsyncGenerator<TranscriptEntry, void, undefined> {
  const { finder, warn } = context;
  const { kind, owner } = await finder.find(id, user);
  // Any member may have sent a prompt to a collaborative session, and the history does not name the sender.
  const transcriber = new Transcriber(kind === "private" ? owner : null);
  const isLoaded = async () => transcriber.isInTurn && (await mayBeLoaded(context, id, user));
  const kept = turns === undefined ? null : new LastTurns(turns);
  let from: HistoryPosition | undefined;
  for (let isFirstTime = true; ; ) {
    signal.throwIfAborted();
    const part = await readPart(context, { id, user, from, signal });
    from = part.at ?? undefined;
    const added = transcriber.push(part.bytes);
    if (isFirstTime && kept !== null) kept.add(added);
    else yield* added;
    if (!part.atEnd) continue;
    const last = follow ? transcriber.pause(Date.now()) : transcriber.end(Date.now(), await isLoaded());
    if (isFirstTime && kept !== null) yield* kept.add(last).entries;
    else yield* last;
    if (isFirstTime && transcriber.damage !== null) warn(damageOf(id, transcriber.damage));
    if (!follow) return;
    isFirstTime = false;
    await pause(part.isHere ? FOLLOW_POLL_MS : FOLLOW_ELSEWHERE_POLL_MS, signal).catch(() => undefined);
    if (signal.aborted) return;
  }
}

async function mayBeLoaded(context: TranscriptContext, id: string, user: string): Promise<boolean> {
  const { state, stranded } = await viewSessionOf(context, id, user);
  return state !== "idle" || stranded;
}

interface PartRequest {
  id: string;
  user: string;
  from: HistoryPosition | undefined;
  signal: AbortSignal;
}

async function readPart({ hosts, finder }: TranscriptContext, { signal, ...request }: PartRequest) {
  const { id, user } = request;
  return await finder.whereItIs(id, user, async (_, host) => {
    const there = hosts.at(host === null ? { here: true } : { here: false, host });
    const { bytes, fate, ...part } = await there.history(request, { signal });
    if (fate === "gone") throw sessionNotFound(id);
    if (fate === "replaced") {
      throw new FleetError("FLEET_STATE_BUSY", `The history of session ${quote(id)} was replaced while it was read.`, {
        suggestions: ["Try again."],
      });
    }
    return { ...part, bytes: Buffer.from(bytes, "base64"), isHere: host === null };
  });
}

/** Keeps the entries of the last `turns` turns. */
class LastTurns {
  readonly entries: TranscriptEntry[] = [];
  readonly #turns: number;

  constructor(turns: number) {
    this.#turns = turns;
  }

  add(added: Iterable<TranscriptEntry>): this {
    for (const entry of added) {
      this.entries.push(entry);
      while (this.entries[0] !== undefined && this.entries[0].turn <= entry.turn - this.#turns) this.entries.shift();
    }
    return this;
  }
}

function damageOf(id: string, { lines, firstLine }: NonNullable<Transcriber["damage"]>): string {
  const what = lines === 1 ? `Line ${firstLine}` : `${lines} lines, from line ${firstLine} on,`;
  return `${what} of the history of session ${quote(id)} cannot be read and ${lines === 1 ? "is" : "are"} left out.`;
}
