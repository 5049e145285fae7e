import * as v from "valibot";
import { FleetError, quote, type Suggestion } from "../../base/errors.js";
import { DEEPEST } from "../../base/held-folder.js";
import { isSessionId } from "../../base/ids.js";
import type { SessionRecord } from "../../base/session.js";
import { isInUseMark } from "../../runtime/history/session-state.js";

/*
 * The manifest is the first entry of a session's archive. It lists everything else in the archive, so that a reader can
 * refuse an archive before it writes anything. It does not name the owner, because the import sets the owner of the new
 * session.
 */

export const FORMAT = "copilotfleet-session";
export const VERSION = 1;
/** The limits of an archive. Exports obey them, too, so that every exported archive can be imported. */
export const MOST_BYTES = 2 * 1024 ** 3;
export const MOST_ENTRIES = 100_000;
export const MOST_MANIFEST_BYTES = 32 * 1024 ** 2;
const LONGEST_NAME = 255;
const LONGEST_PATH = 2_048;
const LONGEST_TEXT = 10_000;

export interface ArchivedFile {
  /** The path in the session's folder, with "/" between the names. */
  path: string;
  bytes: number;
  sha256: string;
}

/** The part of a session's record that an archive contains. */
type ArchivedSession = Pick<
  SessionRecord,
  "id" | "purpose" | "model" | "ttlMs" | "createdAt" | "lastUsedAt" | "turns"
> & { tools: string[] | null; title: string | null };

export interface Manifest {
  format: typeof FORMAT;
  version: typeof VERSION;
  /** ISO 8601, UTC. */
  exportedAt: string;
  session: ArchivedSession;
  /** Each folder comes after the folder that contains it. */
  folders: string[];
  files: ArchivedFile[];
}

export function invalidArchive(why: string, suggestions: Suggestion[] = [], cause?: unknown): FleetError {
  return new FleetError("FLEET_USAGE_INVALID", `The file cannot be imported: ${why}. Nothing was written.`, {
    suggestions: [...suggestions, "copilotfleet export SESSION --user USER --output FILE"],
    cause,
  });
}

const whole = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
const text = v.pipe(v.string(), v.maxLength(LONGEST_TEXT));
const time = v.pipe(v.string(), v.isoTimestamp());

const shape: v.GenericSchema<unknown, Manifest> = v.strictObject({
  format: v.literal(FORMAT),
  version: v.literal(VERSION),
  exportedAt: time,
  session: v.strictObject({
    id: v.pipe(v.string(), v.check(isSessionId)),
    purpose: v.nullable(text),
    title: v.optional(v.nullable(text), null),
    model: v.nullable(text),
    tools: v.nullable(v.array(text)),
    ttlMs: v.nullable(whole),
    createdAt: time,
    lastUsedAt: time,
    turns: whole,
  }),
  folders: v.array(v.string()),
  files: v.array(
    v.strictObject({ path: v.string(), bytes: whole, sha256: v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/)) }),
  ),
});

/** @throws FleetError `FLEET_USAGE_INVALID` */
export function readManifest(bytes: Buffer): Manifest {
  let given: unknown;
  try {
    given = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (cause) {
    throw invalidArchive("its manifest is not valid JSON", [], cause);
  }
  refuseOther(given as { format?: unknown; version?: unknown } | null);
  const read = v.safeParse(shape, given);
  if (!read.success) {
    const where = v.getDotPath(read.issues[0]);
    throw invalidArchive(`its manifest has a field ${quote(where ?? "")} that is not allowed`);
  }
  checkEntries(read.output);
  return read.output;
}

function refuseOther(given: { format?: unknown; version?: unknown } | null): void {
  if (given?.format !== FORMAT) throw invalidArchive("it is not an archive of a session");
  const { version } = given;
  if (version === VERSION) return;
  const isNewer = typeof version === "number" && version > VERSION;
  throw invalidArchive(
    `its format has version ${quote(String(version))}, and this version of copilotfleet reads version ${VERSION}`,
    isNewer ? ["Use the version of copilotfleet that exported the session, or a later one."] : [],
  );
}

function checkEntries({ folders, files }: Manifest): void {
  if (folders.length + files.length > MOST_ENTRIES) throw invalidArchive(`it has more than ${MOST_ENTRIES} entries`);
  const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
  if (bytes > MOST_BYTES) throw invalidArchive(`its files have more than ${MOST_BYTES} bytes`);
  const known = new Set<string>();
  const all = new Set<string>();
  const check = (path: string) => {
    if (!isAllowedPath(path)) throw invalidArchive(`the path ${quote(path)} is not allowed`);
    const slash = path.lastIndexOf("/");
    if (slash !== -1 && !known.has(path.slice(0, slash))) {
      throw invalidArchive(`the folder of ${quote(path)} is not listed before it`);
    }
    if (all.has(path)) throw invalidArchive(`${quote(path)} is listed twice`);
    all.add(path);
  };
  for (const path of folders) {
    check(path);
    known.add(path);
  }
  for (const { path } of files) check(path);
}

/** Whether an archive may contain a file or folder with this path in the session's folder. */
export function isAllowedPath(path: string): boolean {
  const names = path.split("/");
  if (Buffer.byteLength(path) > LONGEST_PATH || names.length > DEEPEST) return false;
  return names.every(isAllowedName);
}

function isAllowedName(name: string): boolean {
  if (name === "" || name === "." || name === ".." || Buffer.byteLength(name) > LONGEST_NAME) return false;
  // Refuse a file that marks a session as loaded, because it names a process of another machine.
  return !isInUseMark(name) && !/[\p{Cc}\p{Cs}\uFFFD\\]/u.test(name);
}
