import { closeSync, constants, fstatSync, openSync, readFileSync, realpathSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { FleetError, systemCode } from "../../errors.js";
import { parseObject } from "../values/json.js";
import { printable, sha256, shellQuote } from "../values/text.js";

/** A project file that the user trusts. Stored in `trusted/` of the state folder. */
export interface TrustRecord {
  path: string;
  /** SHA-256 of path and content. */
  digest: string;
  trustedAt: string;
}

export function trustFolder(stateRoot: string): string {
  return join(stateRoot, "trusted");
}

export function trustRecordPath(stateRoot: string, path: string): string {
  return join(trustFolder(stateRoot), `${sha256(path)}.json`);
}

export function trustDigest(path: string, text: string): string {
  return sha256(`${path}\0${text}`);
}

/**
 * Returns the path under which the trust in a project file is recorded. Links in the path of the folder are resolved,
 * because relative paths in the file start at that folder. A link to the file itself may stay, because the record also
 * has a digest of the file's content.
 */
export function trustedName(path: string): string {
  try {
    return join(realpathSync(dirname(path)), basename(path));
  } catch (error) {
    if (systemCode(error) === "ENOENT" || systemCode(error) === "ENOTDIR") return path;
    throw error;
  }
}

/**
 * Returns the error for a project file with guarded keys. Null if it has none, or if the user trusted this content at
 * this path.
 *
 * @param keys the guarded keys in the file
 */
export function untrustedProblem(
  path: string,
  text: string,
  keys: readonly string[],
  stateRoot: string,
): FleetError | null {
  if (keys.length === 0) return null;
  const name = trustedName(path);
  const digest = readTrust(stateRoot, name)?.digest;
  if (digest === trustDigest(name, text)) return null;
  const verb = keys.length === 1 ? "counts" : "count";
  const why =
    digest === undefined
      ? "Somebody else may have written the file, and such keys can run programs, send secrets elsewhere, or delete sessions."
      : "You trusted the file, and it has changed since then.";
  return new FleetError(
    "FLEET_CONFIG_UNTRUSTED",
    `${keys.join(", ")} in ${printable(path)} ${verb} only when you trust this file. ${why}`,
    {
      suggestions: [
        `cat ${shellQuote(printable(path))}`,
        `copilotfleet trust ${shellQuote(printable(path))}`,
        `Set ${keys[0]} in your own configuration file or by a variable instead.`,
      ],
    },
  );
}

/**
 * Reads the trust record of a {@link trustedName}. Undefined if there is none, or if another user could have written
 * it.
 */
export function readTrust(stateRoot: string, name: string): TrustRecord | undefined {
  const text = readOwn(trustRecordPath(stateRoot, name));
  const record = text === undefined ? undefined : parseTrust(text);
  return record?.path === name ? record : undefined;
}

/**
 * Parses a trust record. If the record is damaged, returns undefined instead of throwing, because the user can trust
 * the file again.
 */
export function parseTrust(text: string): TrustRecord | undefined {
  const { path, digest, trustedAt } = parseObject(text) ?? {};
  if (typeof path !== "string" || typeof digest !== "string" || typeof trustedAt !== "string") return undefined;
  return { path, digest, trustedAt };
}

/**
 * Reads a file, or returns undefined if anybody else could have written it. Checks the file itself, because the state
 * folder is checked only later.
 */
export function readOwn(path: string): string | undefined {
  let handle: number;
  try {
    handle = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    if (["ENOENT", "ENOTDIR", "ELOOP", "EACCES"].includes(systemCode(error) ?? "")) return undefined;
    throw error;
  }
  try {
    const stats = fstatSync(handle);
    const isOurs = process.geteuid === undefined || stats.uid === process.geteuid();
    return stats.isFile() && isOurs && (stats.mode & 0o022) === 0 ? readFileSync(handle, "utf8") : undefined;
  } finally {
    closeSync(handle);
  }
}
