import { closeSync, fstatSync, openSync, statSync } from "node:fs";
import type { ServerRecord } from "../../model/server.js";
import { ifThere, readAt } from "./if-there.js";
import { logPath } from "./server-folder.js";

const LAST_WORDS_BYTES = 2_000;

/** The size of a server's log in bytes; 0 without a log. The output of the next launch begins there. */
export function logSize(home: string): number {
  return statSync(logPath(home), { throwIfNoEntry: false })?.size ?? 0;
}

/** The end of a server's log after the first `from` bytes, as one line. A shorter log was rotated, so all of it counts. */
export function lastWords(home: string, from = 0): string {
  const fd = ifThere(() => openSync(logPath(home), "r"));
  if (fd === null) return ""; // the server never wrote one
  try {
    const size = fstatSync(fd).size;
    const start = Math.max(from > size ? 0 : from, size - LAST_WORDS_BYTES);
    return readAt(fd, start, Math.max(0, size - start))
      .toString("utf8")
      .trim()
      .replace(/\p{Cc}+/gu, " | ");
  } finally {
    closeSync(fd);
  }
}

/** The end of the present launch's output, as the second half of a message. Empty without output. */
export function endOfLog({ home, logStart }: Pick<ServerRecord, "home" | "logStart">): string {
  const words = lastWords(home, logStart);
  return words === "" ? "" : `; the end of its log: ${words}`;
}
