import { closeSync, constants, fstatSync, openSync, readFileSync, realpathSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import * as v from "valibot";
import { FleetError, systemCode } from "../../base/errors.js";
import { parseObject, printable, sha256, shellQuote } from "../../base/values/text.js";
import { checkTogether } from "../checks.js";
import { keyAt } from "../keys.js";
import { attempt, invalidValue, type Origin, type Report, throwProblem, unknownKey, unusableFile } from "../problem.js";
import { type Config, type ConfigInput, ConfigSchema } from "../schema.js";
import type { SecretReference } from "../secret.js";
import { environmentLayer } from "./environment.js";
import { findProjectFile, guardedKeys, PROJECT_FILE, readConfigFile } from "./files.js";
import { fileSource, flatten, type Layer, merge, type Source, unflatten } from "./layers.js";
import { type Environment, homeFolder, stateRoot, userConfigFile } from "./paths.js";

/** A part of the configuration. A value of undefined counts as not given. */
export type PartialConfig = DeepPartial<ConfigInput>;

type DeepPartial<T> = T extends readonly unknown[] | SecretReference
  ? T
  : T extends object
    ? { [K in keyof T]?: DeepPartial<T[K]> | undefined }
    : T;

export interface LoadOptions {
  /** Settings from a caller of the library, or from flags of the command line. {@link flagNames} names those flags. */
  flags?: PartialConfig;
  /** The flags that set dotted keys, for messages: `{ "session.ttl": "--ttl" }`. */
  flagNames?: Readonly<Record<string, string>>;
  env?: Environment;
  cwd?: string;
  /** A file that the user named. It replaces the project's `.copilotfleet.json`, and it may set all keys. */
  configFile?: string;
  home?: string;
  uid?: number;
}

export interface LoadedConfig {
  config: Config;
  /** The given values, unresolved, by dotted key. All other values in {@link config} are defaults. */
  given: Layer;
  /** The files that were read. The first one takes precedence. */
  sources: string[];
  stateRoot: string;
}

/** A configuration file. `untrusted`: its guarded keys do not count. `unusable`: it cannot be read or is not JSON. */
export interface ConfigFile {
  path: string;
  /** `named`: the file of the flag `--config`. `project`: a `.copilotfleet.json`. `user`: the user's own file. */
  kind: "named" | "project" | "user";
  state: "read" | "missing" | "unusable" | "untrusted";
}

/**
 * Loads the configuration. A value comes from the first of these sources that has it: flag, `COPILOTFLEET_*` variable,
 * `.copilotfleet.json` (the nearest one upward from the working folder), the user's own file, default. This function is
 * synchronous and light because every command begins with it.
 */
export function loadConfig(options: LoadOptions = {}): LoadedConfig {
  const { files, given, stateRoot, uid, env } = gather(options, throwProblem);
  const config = resolveConfig(given);
  checkTogether(config, given, { uid, stateRoot, env });
  const sources = files.filter(({ state }) => state === "read").map(({ path }) => path);
  return { config, given, sources, stateRoot };
}

/**
 * Reads all sources. The first file takes precedence, and the last layer. `untrusted` has all values of files that the
 * user does not trust. It is only for messages, because the guarded keys do not count.
 *
 * @param report gets every value and file that cannot be used
 */
export function gather(options: LoadOptions, report: Report) {
  const { env = process.env, cwd = process.cwd(), home = homeFolder(env), uid = process.geteuid?.() } = options;
  const root =
    attempt(() => stateRoot(env, { cwd, home }), report) ??
    stateRoot({ ...env, COPILOTFLEET_HOME: undefined }, { home });
  const untrusted: Layer[] = [];
  const read = (kind: ConfigFile["kind"], path: string): { file: ConfigFile; layer: Layer } => {
    const as = (state: ConfigFile["state"], layer: Layer = new Map()) => ({ file: { path, kind, state }, layer });
    const content = attempt(() => readConfigFile(path, uid) ?? null, report);
    if (content === undefined) return as("unusable");
    if (content === null) {
      if (kind !== "named") return as("missing");
      const reason = "does not exist. Allowed: the path of an existing file";
      report(unusableFile(path, reason, ["copilotfleet init # writes a configuration", "copilotfleet config path"]));
      return as("missing");
    }
    const layer = flatten(content.content, fileSource(path, content.text, home), report);
    const guarded = kind === "project" ? guardedKeys(layer) : [];
    const problem = untrustedProblem(path, content.text, guarded, root);
    if (problem === null) return as("read", layer);
    report(problem);
    untrusted.push(layer);
    return as("untrusted", new Map([...layer].filter(([name]) => !guarded.includes(name))));
  };
  const near =
    options.configFile === undefined
      ? read("project", findProjectFile(cwd) ?? join(cwd, PROJECT_FILE))
      : read("named", resolve(cwd, options.configFile));
  const own = read("user", userConfigFile(env, { home }));
  const flags = flatten(options.flags ?? {}, flagSource(options.flagNames, { folder: cwd, home }), report);
  const variables = environmentLayer(env, { folder: cwd, home }, report);
  const layers = [own.layer, near.layer, variables, flags];
  return { files: [near.file, own.file], layers, untrusted, given: merge(layers), stateRoot: root, uid, env };
}

function flagSource(flagNames: LoadOptions["flagNames"] = {}, folders: { folder: string; home: string }): Source {
  const originOf = (name: string): Origin => {
    const flag = flagNames[name];
    return flag === undefined ? { from: "option", name: `config.${name}` } : { from: "flag", name: flag };
  };
  return { originOf, ...folders };
}

/** Checks settings from flags by themselves, without the other sources. @throws FleetError for a wrong value */
export function checkFlags(flags: PartialConfig, flagNames: Readonly<Record<string, string>>): void {
  resolveConfig(flatten(flags, flagSource(flagNames, { folder: "/", home: "/" })));
}

function resolveConfig(given: Layer): Config {
  const result = v.safeParse(ConfigSchema, unflatten(given), { abortEarly: true });
  if (result.success) return result.output;
  throw problemOf(result.issues[0], given).problem;
}

/** The key that an issue is about, and the error. */
export function problemOf(issue: v.BaseIssue<unknown>, given: Layer): { name: string; problem: FleetError } {
  const path = (issue.path ?? []).map(({ key }) => (typeof key === "number" ? `[${key}]` : `.${String(key)}`));
  const whole = path.join("").replace(/^\./, "");
  // The path may lead into the value of the key: into a list, or into an object whose keys the user chooses.
  const { name } = keyAt(whole);
  const origin = given.get(name)?.origin;
  const isUnknown = name !== whole && issue.type === "strict_object" && issue.expected === "never";
  const problem =
    isUnknown && origin !== undefined
      ? unknownKey(whole, origin, issue.message)
      : invalidValue(whole, issue.input, issue.message, origin);
  return { name, problem };
}

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
function untrustedProblem(path: string, text: string, keys: readonly string[], stateRoot: string): FleetError | null {
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
