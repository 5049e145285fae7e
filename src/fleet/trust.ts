import { mkdirSync, readdirSync, statSync, unlinkSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { FleetError, quote, systemCode } from "../base/errors.js";
import { ifThere } from "../base/if-there.js";
import { printable, shellQuote } from "../base/values/text.js";
import { findProjectFile, guardedKeys, PROJECT_FILE, readConfigFile } from "../config/load/files.js";
import { fileSource, flatten } from "../config/load/layers.js";
import {
  parseTrust,
  readOwn,
  readTrust,
  type TrustRecord,
  trustDigest,
  trustedName,
  trustFolder,
  trustRecordPath,
} from "../config/load/load.js";
import { type Environment, homeFolder, stateRoot } from "../config/load/paths.js";
import { unusableFile } from "../config/problem.js";
import { unwritable } from "../runtime/files/server-folder.js";
import { checkStateFolder, ensureStateFolder, replaceStateFile } from "../store/file/state-folder.js";

export interface TrustOptions {
  env: Environment;
  cwd: string;
}

export interface ProjectFile {
  path: string;
  /** The guarded keys with their values as the fleet would use them. */
  sets: Record<string, unknown>;
  digest: string;
}

/**
 * `trusted`: the file has not changed since the user trusted it. `changed`: it has changed since, or cannot be read.
 * `missing`: it does not exist.
 */
export type TrustState = "trusted" | "changed" | "missing";

export interface TrustView {
  path: string;
  trustedAt: string;
  state: TrustState;
}

/**
 * Reads a project file, so that the user can see its guarded keys and decide whether to trust it.
 *
 * @param given the file or its folder; if left out, the project file in the working folder or in the nearest folder
 * above
 */
export function readProjectFile(given: string | undefined, { env, cwd }: TrustOptions): ProjectFile {
  const path = given === undefined ? findProjectFile(cwd) : projectFileAt(given, cwd);
  if (path === null) {
    const message = `There is no ${PROJECT_FILE} in ${printable(cwd)} or in a folder above it.`;
    throw new FleetError("FLEET_USAGE_INVALID", message, { suggestions: ["copilotfleet trust PATH"] });
  }
  const file = readConfigFile(path, process.geteuid?.());
  if (file === undefined) throw unusableFile(path, "does not exist", ["copilotfleet trust --list"]);
  refuseWritable(path);
  const layer = flatten(file.content, fileSource(path, file.text, homeFolder(env)));
  const sets = Object.fromEntries(guardedKeys(layer).map((key) => [key, layer.get(key)?.value]));
  const name = trustedName(path);
  return { path: name, sets, digest: trustDigest(name, file.text) };
}

/** @throws FleetError `FLEET_EVENTS_UNWRITABLE` when the audit log cannot be written. Nothing is trusted then. */
export async function trustFile({ path, digest }: ProjectFile, { env, cwd }: TrustOptions): Promise<TrustView> {
  const root = stateRoot(env, { cwd });
  const record: TrustRecord = { path, digest, trustedAt: new Date().toISOString() };
  const target = trustRecordPath(root, path);
  await recordTrust(root, { detail: `${path} ${digest}` }, async () => {
    try {
      ensureStateFolder(root);
      mkdirSync(trustFolder(root), { recursive: true, mode: 0o700 });
      replaceStateFile(root, target, record);
    } catch (error) {
      throw unwritable(target, error);
    }
  });
  return { path, trustedAt: record.trustedAt, state: "trusted" };
}

/** Lists the files that the user trusts, sorted by path. */
export function listTrusted({ env, cwd }: TrustOptions): TrustView[] {
  const root = stateRoot(env, { cwd });
  checkStateFolder(root);
  const names = (ifThere(() => readdirSync(trustFolder(root))) ?? []).filter((name) => name.endsWith(".json"));
  return names
    .flatMap((name) => parseTrust(readOwn(join(trustFolder(root), name)) ?? "") ?? [])
    .map(({ path, digest, trustedAt }) => ({ path, trustedAt, state: stateOf(path, digest) }))
    .sort((a, b) => (a.path < b.path ? -1 : 1));
}

/** Revokes the trust in a file. @returns a list with its path, or an empty list if the file was not trusted */
export async function revokeTrust(given: string, { env, cwd }: TrustOptions): Promise<string[]> {
  const root = stateRoot(env, { cwd });
  checkStateFolder(root);
  const name = trustedName(projectFileAt(given, cwd));
  if (readTrust(root, name) === undefined) return [];
  await recordTrust(root, { detail: name, reason: "revoked" }, async () => {
    try {
      unlinkSync(trustRecordPath(root, name));
    } catch (error) {
      if (systemCode(error) !== "ENOENT") throw unwritable(trustRecordPath(root, name), error);
    }
  });
  return [name];
}

/**
 * Records a decision about trust in the audit log, and then runs `action`. The command reads no configuration, so the
 * configured limit of the log's age does not apply.
 */
async function recordTrust(
  root: string,
  about: { detail: string; reason?: string },
  action: () => Promise<void>,
): Promise<void> {
  const [{ Events }, { audited }] = await Promise.all([
    import("../accounts/audit/events.js"),
    import("../identity/acting.js"),
  ]);
  const config = { events: { retentionMs: Number.POSITIVE_INFINITY } };
  const events = new Events({ store: { hosts: null }, config, stateRoot: root, via: "command", warn: () => undefined });
  try {
    await audited(events, { type: "config.trusted", ...about }, action);
  } finally {
    await events.flush();
  }
}

/** @param given the project file or its folder @returns the project file */
function projectFileAt(given: string, cwd: string): string {
  const path = resolve(cwd, given);
  if (basename(path) === PROJECT_FILE) return path;
  if (given.trim() !== "" && statSync(path, { throwIfNoEntry: false })?.isDirectory() === true)
    return join(path, PROJECT_FILE);
  const exists = statSync(path, { throwIfNoEntry: false }) !== undefined;
  const why = `${quote(given)} ${exists && given.trim() !== "" ? `is not a file named ${PROJECT_FILE}` : "does not exist"}`;
  throw new FleetError("FLEET_USAGE_INVALID", `${why}. Allowed: a ${PROJECT_FILE}, or a folder that contains one`, {
    suggestions: ["copilotfleet trust . # the file in the working folder", "copilotfleet trust --list"],
  });
}

/** Refuses a file that others can write, because they could change it while the user reads it. */
function refuseWritable(path: string): void {
  const mode = statSync(path).mode & 0o7777;
  if ((mode & 0o022) === 0) return;
  const problem = `can be written by others (mode ${mode.toString(8).padStart(4, "0")}), so it cannot be trusted`;
  throw unusableFile(path, problem, [`chmod go-w ${shellQuote(printable(path))}`]);
}

function stateOf(path: string, digest: string): TrustState {
  try {
    const file = readConfigFile(path, process.geteuid?.());
    if (file === undefined) return "missing";
    return trustDigest(path, file.text) === digest ? "trusted" : "changed";
  } catch {
    // The file is not usable now. It was usable when the user trusted it, so it has changed.
    return "changed";
  }
}
