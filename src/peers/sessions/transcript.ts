import { FleetError, quote } from "../../errors.js";
import { endingAtOnce } from "../../runtime/ending-at-once.js";
import { Transcriber, type TranscriptEntry } from "../../runtime/history/transcript.js";
import { viewSessionOf } from "../gather.js";
import { type HistoryContext, type HistoryPartsRequest, historyParts } from "./history-parts.js";

/** How often to read a history whose last turn has no final event but may be over, in milliseconds. */
const QUIET_MS = 250;
/** The longest transcript that is collected in memory, in bytes. People do not read as much. */
const MOST_KEPT_BYTES = 16 * 1024 * 1024;
const ENTRY_BYTES = 200;

export interface TranscriptRequest extends HistoryPartsRequest {
  /** Yields only this many turns, the last ones. Default: all turns. */
  turns?: number | undefined;
}

/**
 * Yields the conversation of a session on any host. Warns about lines that cannot be read.
 *
 * @throws FleetError like {@link historyParts}; `FLEET_STATE_BUSY` when the history was replaced; `FLEET_USAGE_INVALID` when
 * the last `turns` are too long to be collected.
 */
export async function* readTranscript(
  context: HistoryContext,
  id: string,
  { turns, ...request }: TranscriptRequest,
): AsyncGenerator<TranscriptEntry, void, undefined> {
  const { user, follow = false } = request;
  const { kind, owner } = await context.finder.find(id, user);
  // Any member may have sent a prompt to a collaborative session, and the history does not name the sender.
  const transcriber = new Transcriber(kind === "private" ? owner : null);
  const isLoaded = async () => transcriber.isInTurn && (await mayBeLoaded(context, id, user));
  const kept = turns === undefined ? null : new LastTurns(id, turns);
  let isFirstTime = true;
  const atLeastMs = () => (transcriber.isFading ? QUIET_MS : undefined);
  for await (const part of historyParts(context, id, { ...request, atLeastMs })) {
    if (part.fate === "replaced") throw replaced(id);
    const added = transcriber.push(part.bytes);
    if (isFirstTime && kept !== null) kept.add(added);
    else yield* added;
    if (!part.atEnd) continue;
    const last = follow ? transcriber.pause(Date.now()) : transcriber.end(Date.now(), await isLoaded());
    if (isFirstTime && kept !== null) yield* kept.add(last).entries;
    else yield* last;
    if (isFirstTime && transcriber.damage !== null) context.warn(damageOf(id, transcriber.damage));
    isFirstTime = false;
  }
}

/** Like {@link readTranscript}, and ends at once when the caller stops reading. */
export function followTranscript(
  context: HistoryContext,
  id: string,
  request: TranscriptRequest,
): AsyncGenerator<TranscriptEntry, void, undefined> {
  return endingAtOnce(request.signal, (signal) => readTranscript(context, id, { ...request, signal }));
}

async function mayBeLoaded(context: HistoryContext, id: string, user: string): Promise<boolean> {
  const { state, stranded } = await viewSessionOf(context, id, user);
  return state !== "idle" || stranded;
}

function replaced(id: string): FleetError {
  return new FleetError("FLEET_STATE_BUSY", `The history of session ${quote(id)} was replaced while it was read.`, {
    suggestions: ["Try again."],
  });
}

/** Keeps the entries of the last `turns` turns. */
class LastTurns {
  readonly entries: TranscriptEntry[] = [];
  readonly #id: string;
  readonly #turns: number;
  #bytes = 0;

  constructor(id: string, turns: number) {
    this.#id = id;
    this.#turns = turns;
  }

  add(added: Iterable<TranscriptEntry>): this {
    for (const entry of added) {
      this.entries.push(entry);
      this.#bytes += bytesOf(entry);
      const isKept = ({ turn }: TranscriptEntry) => turn > entry.turn - this.#turns;
      if (this.entries[0] !== undefined && !isKept(this.entries[0])) {
        // Remove the old entries at once: an agent can give a turn a million entries, and `shift` moves all that follow.
        const from = this.#turns === 0 ? this.entries.length : this.entries.findIndex(isKept);
        for (const old of this.entries.splice(0, from)) this.#bytes -= bytesOf(old);
      }
      if (this.#bytes > MOST_KEPT_BYTES) throw tooLong(this.#id);
    }
    return this;
  }
}

/** About how many bytes the entry takes in an answer. */
function bytesOf({ text, failure }: TranscriptEntry): number {
  return ENTRY_BYTES + text.length + (failure?.length ?? 0);
}

function tooLong(id: string): FleetError {
  return new FleetError(
    "FLEET_USAGE_INVALID",
    `The transcript of session ${quote(id)} has more than ${MOST_KEPT_BYTES} bytes, which is too much for one answer.`,
    { suggestions: ["Ask for fewer turns.", `copilotfleet transcript ${id} --user USER`] },
  );
}

function damageOf(id: string, { lines, firstLine }: NonNullable<Transcriber["damage"]>): string {
  const what = lines === 1 ? `Line ${firstLine}` : `${lines} lines, from line ${firstLine} on,`;
  return `${what} of the history of session ${quote(id)} cannot be read and ${lines === 1 ? "is" : "are"} left out.`;
}
