import { closeSync, fstatSync, openSync, readSync, statSync } from "node:fs";
import type { ServerRecord } from "../../model/server.js";
import { ifThere } from "./if-there.js";
import { logPath } from "./server-folder.js";

const LAST_WORDS_BYTES = 2_000;

/** The size of a server's log in bytes, which is where the output of the next launch begins. 0 when there is none. */
export function logSize(home: string): number {
  return statSync(logPath(home), { throwIfNoEntry: false })?.size ?? 0;
}

/** The end of a server's log as one line. A log that is shorter than `from` was rotated, so all of it is newer. */
export function lastWords(home: string, from = 0): string {
  const fd = ifThere(() => openSync(logPath(home), "r"));
  if (fd === null) return ""; // the server never wrote one
  try {
    const size = fstatSync(fd).size;
    const start = Math.max(from > size ? 0 : from, size - LAST_WORDS_BYTES);
    const buffer = Buffer.alloc(Math.max(0, size - start));
    const bytes = readSync(fd, buffer, 0, buffer.length, start);
    return buffer
      .toString("utf8", 0, bytes)
      .trim()
      .replace(/\p{Cc}+/gu, " | ");
  } finally {
    closeSync(fd);
  }
}

/** The end of what the current launch wrote to its log, as the second half of a message. Empty if it wrote nothing. */
export function endOfLog({ home, logStart }: Pick<ServerRecord, "home" | "logStart">): string {
  const words = lastWords(home, logStart);
  return words === "" ? "" : `; the end of its log: ${words}`;
}
