import { fstatSync, type Stats } from "node:fs";
import { setImmediate as yieldToOthers } from "node:timers/promises";
import { FleetError, quote } from "../../errors.js";
import { readAt } from "../files/if-there.js";

/**
 * We do not read more than this between a position in a history and its end. A session of a day with 2,000 tool calls
 * has less than 100 MB. An agent can make a file of any size, even without using the disk.
 */
export const MOST_HISTORY_BYTES = 256 * 1024 ** 2;
/** Splitting and parsing this many bytes takes less than 30 ms, whatever an agent has written. */
export const PIECE_BYTES = 64 * 1024;
/** How many bytes before the offset we remember. The next read compares them, to detect that the file was replaced. */
const MARK_BYTES = 32;

/** The position up to which a history has been read. */
export interface HistoryPosition {
  ino: number;
  offset: number;
  /** The bytes right before the offset, in base64. */
  mark: string;
}

/** `replaced`: the path now has another file, or the file was cut short, so reading cannot continue. */
export type HistoryFate = "there" | "gone" | "replaced";

export interface HistoryPart {
  bytes: Buffer;
  /** Where the next part begins. Null if the session has no history. */
  at: HistoryPosition | null;
  atEnd: boolean;
  fate: HistoryFate;
}

let lastPiece: Promise<void> = Promise.resolve();

/**
 * Wait for this between two pieces of a history. However many readers wait, only one of them goes on in each round of the
 * event loop, so that many readers do not stop other work for longer than one reader does.
 */
export async function nextPiece(): Promise<void> {
  lastPiece = lastPiece.then(async () => await yieldToOthers());
  await lastPiece;
}

/** @throws FleetError `FLEET_SESSION_LOST` when the history is too long to be read from this position to its end */
export function assertReadable(size: number, sessionId: string, fromBytes: number): void {
  const bytes = size - fromBytes;
  if (bytes <= MOST_HISTORY_BYTES) return;
  throw new FleetError(
    "FLEET_SESSION_LOST",
    `The history of session ${quote(sessionId)} has ${bytes} bytes to read. The fleet reads at most ${MOST_HISTORY_BYTES} bytes.`,
  );
}

export function markOf(bytes: Buffer): string {
  return bytes.subarray(-MARK_BYTES).toString("base64");
}

/** Whether this is still the file that was read up to this position. */
export function isContinued(fd: number, { ino, offset, mark }: HistoryPosition, stat: Stats): boolean {
  if (stat.ino !== ino || stat.size < offset) return false;
  const before = Buffer.from(mark, "base64");
  return before.length <= offset && readAt(fd, offset - before.length, before.length).equals(before);
}

/** Reads at most `maxBytes`, and advances the position by the bytes read. */
export function readNext(fd: number, position: HistoryPosition, maxBytes: number): Buffer {
  const bytes = readAt(fd, position.offset, maxBytes);
  position.offset += bytes.length;
  position.mark = markOf(Buffer.concat([Buffer.from(position.mark, "base64"), bytes.subarray(-MARK_BYTES)]));
  return bytes;
}

/**
 * Reads the next part of a history.
 *
 * @param fd the open history; null if the session has no history
 * @param from where the last part ended; null for the beginning
 * @throws FleetError `FLEET_SESSION_LOST` when the history is too long to be read from there to its end
 */
export function readPart(
  fd: number | null,
  sessionId: string,
  from: HistoryPosition | null,
  maxBytes: number,
): HistoryPart {
  const none = { bytes: Buffer.alloc(0), at: from, atEnd: true };
  if (fd === null) return { ...none, fate: from === null ? "there" : "gone" };
  const stat = fstatSync(fd);
  const at = from === null ? { ino: stat.ino, offset: 0, mark: "" } : { ...from };
  if (!isContinued(fd, at, stat)) return { ...none, fate: "replaced" };
  assertReadable(stat.size, sessionId, at.offset);
  const bytes = readNext(fd, at, Math.min(maxBytes, stat.size - at.offset));
  return { bytes, at, atEnd: at.offset >= stat.size, fate: "there" };
}
