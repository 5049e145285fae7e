import { parseObject } from "../../../config/values/json.js";
import { sha256 } from "../../../config/values/text.js";
import { SCHEMA } from "../../../model/registry.js";

const NAME = /^(\d{16})\.json$/;
const NEWLINE = 0x0a;

export type Decoded =
  | { kind: "good"; data: string }
  | { kind: "damaged"; reason: string }
  | { kind: "newer"; schema: number };

export function revisionName(rev: number): string {
  return `${String(rev).padStart(16, "0")}.json`;
}

/** The number in the file name of a revision; undefined for any other file name. */
export function revisionNumber(name: string): number | undefined {
  const digits = NAME.exec(name)?.[1];
  return digits === undefined ? undefined : Number(digits);
}

/**
 * A revision has two lines: a header with a checksum of the data, and the data. `commit` in the header is only for people.
 */
export function encodeRevision(rev: number, commit: string, data: string): Buffer {
  return Buffer.from(`${JSON.stringify({ schema: SCHEMA, rev, commit, sha256: sha256(data) })}\n${data}\n`);
}

export function decodeRevision(bytes: Buffer, rev: number): Decoded {
  if (bytes.length === 0) return { kind: "damaged", reason: "it is empty" };
  const headerEnd = bytes.indexOf(NEWLINE);
  if (headerEnd === -1) return { kind: "damaged", reason: "it is cut short" };
  const header = parseObject(bytes.toString("utf8", 0, headerEnd));
  // Check the schema before anything else, because a newer version may compute the checksum differently.
  if (typeof header?.schema === "number" && header.schema > SCHEMA) return { kind: "newer", schema: header.schema };
  if (header?.schema !== SCHEMA) return { kind: "damaged", reason: "its header is not readable" };
  if (header.rev !== rev) return { kind: "damaged", reason: "its header belongs to another revision" };
  if (bytes[bytes.length - 1] !== NEWLINE) return { kind: "damaged", reason: "it is cut short" };
  const data = bytes.subarray(headerEnd + 1, -1);
  if (header.sha256 !== sha256(data)) return { kind: "damaged", reason: "its checksum does not match" };
  return { kind: "good", data: data.toString("utf8") };
}
