import { createHash } from "node:crypto";
import { SCHEMA } from "../store.js";

const NAME = /^(\d{16})\.json$/;
const NEWLINE = 0x0a;

/** What one revision file turned out to hold. */
export type Decoded =
  | { kind: "good"; data: string }
  | { kind: "damaged"; reason: string }
  | { kind: "newer"; schema: number };

export function revisionName(rev: number): string {
  return `${String(rev).padStart(16, "0")}.json`;
}

/** The number that a file name carries, or undefined when it is not the name of a revision. */
export function revisionNumber(name: string): number | undefined {
  const digits = NAME.exec(name)?.[1];
  return digits === undefined ? undefined : Number(digits);
}

/**
 * Two lines: a header, then the data that its checksum covers. `commit` names the writer and its attempt; nothing reads
 * it, but it tells who wrote a file that somebody has to look at by hand.
 */
export function encodeRevision(rev: number, commit: string, data: string): Buffer {
  const sha256 = createHash("sha256").update(data).digest("hex");
  return Buffer.from(`${JSON.stringify({ schema: SCHEMA, rev, commit, sha256 })}\n${data}\n`);
}

export function decodeRevision(bytes: Buffer, rev: number): Decoded {
  if (bytes.length === 0) return { kind: "damaged", reason: "it is empty" };
  const headerEnd = bytes.indexOf(NEWLINE);
  if (headerEnd === -1) return { kind: "damaged", reason: "it is cut short" };
  const header = parseObject(bytes.toString("utf8", 0, headerEnd));
  // A newer version may checksum in another way, so its number is believed before anything else is looked at.
  if (typeof header?.schema === "number" && header.schema > SCHEMA) return { kind: "newer", schema: header.schema };
  if (header?.schema !== SCHEMA) return { kind: "damaged", reason: "its header is not readable" };
  if (header.rev !== rev) return { kind: "damaged", reason: "its header belongs to another revision" };
  if (bytes[bytes.length - 1] !== NEWLINE) return { kind: "damaged", reason: "it is cut short" };
  const data = bytes.subarray(headerEnd + 1, -1);
  const sha256 = createHash("sha256").update(data).digest("hex");
  if (header.sha256 !== sha256) return { kind: "damaged", reason: "its checksum does not match" };
  return { kind: "good", data: data.toString("utf8") };
}

/** The JSON object in `text`, or undefined when there is none. */
export function parseObject(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null && !Array.isArray(value)
      ? (value as Record<string, unknown>)
      : undefined;
  } catch {
    return undefined;
  }
}
