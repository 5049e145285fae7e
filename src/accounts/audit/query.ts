import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { setImmediate } from "node:timers/promises";
import type { EventType, FleetEvent } from "../../base/event.js";
import { countingLines, filesOf, type LogFile, LogFiles, readHead } from "../../store/file/events.js";
import { readLine } from "./verify.js";

/** Selects events. An event must match every field that is given. */
export interface EventFilter {
  /** Only events that this user caused, or that concern this user. */
  user?: string | undefined;
  types?: EventType[] | undefined;
  /** Only events from this time on, in milliseconds since the epoch. */
  sinceMs?: number | undefined;
}

export interface EventQuery extends EventFilter {
  /** Only events after this number in the host's log. */
  after?: number | undefined;
  /** The most events to return. */
  limit: number;
}

export interface EventPage {
  events: FleetEvent[];
  /** The `after` of the next page. */
  next: number;
  /** Whether the log has, or may have, more events after this page. */
  hasMore: boolean;
}

/** How much of a file's end to read for its last line, in bytes. No line is longer. */
const TAIL_BYTES = 16 * 1024;

/** Reads one page of this host's log. Leaves out damaged lines. */
export async function readEvents(stateRoot: string, query: EventQuery): Promise<EventPage> {
  const files = new LogFiles(stateRoot);
  const after = query.after ?? 0;
  const events: FleetEvent[] = [];
  const all = filesOf(files, after + 1);
  const first = firstEndingAfter(all, query.sinceMs);
  const skipped = all[first - 1];
  let next = Math.max(after, skipped === undefined ? 0 : (readLine(lastLine(skipped.path))?.seq ?? 0));
  for (const file of all.slice(first)) {
    const lines = countingLines(file);
    if (lines === undefined) return { events, next, hasMore: true }; // a process has moved the lines into a segment
    for (const text of lines) {
      const line = readLine(text);
      if (line === null || line.seq <= next) continue;
      if (events.length >= query.limit) return { events, next, hasMore: true };
      next = line.seq;
      if (matches(line, query)) events.push(withoutHashes(line));
    }
    await setImmediate(); // Let a supervisor do other work in between.
  }
  return { events, next, hasMore: false };
}

/** The number of the newest event of this host's log; 0 if there is none. */
export function newestEvent(stateRoot: string): number {
  return readHead(new LogFiles(stateRoot)).seq;
}

function matches(event: FleetEvent, { user, types, sinceMs }: EventFilter): boolean {
  if (types !== undefined && !types.includes(event.type)) return false;
  if (user !== undefined && event.user !== user && event.actor.user !== user) return false;
  return sinceMs === undefined || Date.parse(event.at) >= sinceMs;
}

function withoutHashes({ prev: _, hash: __, ...event }: FleetEvent & { prev: string; hash: string }): FleetEvent {
  return event;
}

/** The number of files at the beginning of the list that contain only events before `sinceMs`. */
function firstEndingAfter(files: readonly LogFile[], sinceMs: number | undefined): number {
  if (sinceMs === undefined) return 0;
  let first = files.length;
  while (first > 0 && endsAfter(files[first - 1]?.path ?? "", sinceMs)) first -= 1;
  return first;
}

function endsAfter(path: string, sinceMs: number): boolean {
  const time = timeOfLast(path);
  return time === null || time >= sinceMs;
}

/** The time of the last line of a file, in milliseconds since the epoch; null if the line is damaged. */
export function timeOfLast(path: string): number | null {
  const last = readLine(lastLine(path));
  return last === null ? null : Date.parse(last.at);
}

function lastLine(path: string): string {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch {
    return ""; // a process has moved the lines into a segment
  }
  try {
    const { size } = fstatSync(fd);
    const length = Math.min(size, TAIL_BYTES);
    const buffer = Buffer.alloc(length);
    readSync(fd, buffer, 0, length, size - length);
    return buffer.toString("utf8").trimEnd().split("\n").at(-1) ?? "";
  } finally {
    closeSync(fd);
  }
}
