import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { systemCode } from "../errors.js";
import { logPath } from "./server-folder.js";

const LAST_WORDS_BYTES = 2_000;

/** The end of what a server wrote to its log from a position on, as one line, short enough for a message. */
export function lastWords(home: string, from = 0): string {
  let fd: number;
  try {
    fd = openSync(logPath(home), "r");
  } catch (error) {
    if (systemCode(error) === "ENOENT") return ""; // it never came to write one
    throw error;
  }
  try {
    const size = fstatSync(fd).size;
    const start = Math.max(from, size - LAST_WORDS_BYTES);
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
