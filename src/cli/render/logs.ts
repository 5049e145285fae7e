import { printableLines } from "../../config/values/text.js";
import { isLaunchLine, NOT_RESTRICTED, timeOfLine, withoutTime } from "../../runtime/files/server-log.js";
import { colour } from "./colour.js";

const UNKNOWN_TIME = "-".padEnd("2026-01-01T00:00:00.000Z".length);

export interface LogStyle {
  /** Begin each line with the name of its server, padded to `width`. */
  prefix?: { name: string; width: number } | undefined;
  /** Begin each line with its time, or with `-` if the time is not known. */
  timestamps: boolean;
}

export function renderLogLine(line: string, { prefix, timestamps }: LogStyle): string {
  // A terminal must not interpret control characters that an agent made the server print. A pipe gets the exact log.
  const plain = process.stdout.isTTY === true ? printableLines(line) : line;
  const text = isLaunchLine(plain) ? plain.replace(NOT_RESTRICTED, (words) => colour.yellow(words)) : plain;
  const timed = timestamps ? `${timeOfLine(text) ?? UNKNOWN_TIME} ${withoutTime(text)}` : text;
  return prefix === undefined ? timed : `${colour.cyan(`${prefix.name.padEnd(prefix.width)} |`)} ${timed}`;
}

/** Splits the bytes of a log into lines. Yields an incomplete line only when the bytes end. */
export async function* linesOf(pieces: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const piece of pieces) {
    const lines = (rest + decoder.decode(piece, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    yield* lines;
  }
  if (rest !== "") yield rest;
}
