import { dirname, resolve } from "node:path";
import * as v from "valibot";
import { checkTogether } from "./checks.js";
import { environmentLayer } from "./environment.js";
import { findProjectFile, readConfigFile } from "./files.js";
import { flatten, type Layer, merge, unflatten } from "./layers.js";
import { type Environment, homeFolder, stateRoot, userConfigFile } from "./paths.js";
import { invalidValue, unusableFile } from "./problem.js";
import { type Config, type ConfigInput, ConfigSchema } from "./schema.js";
import { printable } from "./text.js";
import { refuseUntrusted } from "./trust.js";

/** Any part of the configuration; undefined counts as not given. */
export type PartialConfig = DeepPartial<ConfigInput>;

type DeepPartial<T> = T extends readonly unknown[]
  ? T
  : T extends object
    ? { [K in keyof T]?: DeepPartial<T[K]> | undefined }
    : T;

export interface LoadOptions {
  /** Settings of a caller of the library, or of the command line, whose flags {@link flagNames} names. */
  flags?: PartialConfig;
  /** How the flag of a dotted key is called, for messages: `{ "session.ttl": "--ttl" }`. */
  flagNames?: Readonly<Record<string, string>>;
  env?: Environment;
  cwd?: string;
  /** A file that the user named. It counts in place of the project's `.copilotfleet.json`, and all of its keys do. */
  configFile?: string;
  home?: string;
  /** Whose rights count: the effective user id. */
  uid?: number;
}

export interface LoadedConfig {
  config: Config;
  /** What was given, as it was written, by dotted key; the rest of {@link config} is defaults. */
  given: Layer;
  /** The files that were read, the one that counts more first. */
  sources: string[];
  /** Absolute path of the folder that holds all state. */
  stateRoot: string;
}

/**
 * The configuration that is in force: flag, `COPILOTFLEET_*` variable, `.copilotfleet.json` (the nearest upward from
 * the working folder), the user's own file, default, in this order. Synchronous and light: every command begins here.
 *
 * @throws FleetError `FLEET_CONFIG_INVALID` or `FLEET_CONFIG_KEY_UNKNOWN`; `FLEET_CONFIG_UNTRUSTED` for a
 * `.copilotfleet.json` with keys that need the user's trust (`guarded.ts`); for a value that was given as a flag the
 * usage error of its kind (`FLEET_DURATION_INVALID`, …).
 */
export function loadConfig(options: LoadOptions = {}): LoadedConfig {
  const env = options.env ?? process.env;
  const cwd = options.cwd ?? process.cwd();
  const home = options.home ?? homeFolder(env);
  const uid = options.uid ?? process.geteuid?.();
  const root = stateRoot(env, { cwd, home });
  const named = options.configFile === undefined ? undefined : resolve(cwd, options.configFile);
  const project = named ?? findProjectFile(cwd);
  const files: [string, Layer][] = [];
  for (const path of [project, userConfigFile(env, { home })]) {
    const file = path === null ? undefined : readConfigFile(path, uid);
    if (path !== null && path === named && file === undefined)
      throw unusableFile(path, "does not exist", [`ls ${printable(path)}`]);
    if (path === null || file === undefined) continue;
    const folder = dirname(path);
    const layer = flatten(file.content, { originOf: () => ({ from: "file", name: path }), folder, home });
    if (path === project && named === undefined) refuseUntrusted(path, file.text, layer, root);
    files.push([path, layer]);
  }
  const flagNames = options.flagNames ?? {};
  const flags = flatten(options.flags ?? {}, {
    originOf: (name) => {
      const flag = flagNames[name];
      return flag === undefined ? { from: "option", name: `config.${name}` } : { from: "flag", name: flag };
    },
    folder: cwd,
    home,
  });
  const given = merge([...files.map(([, layer]) => layer).reverse(), environmentLayer(env, cwd, home), flags]);
  const config = resolveConfig(given);
  checkTogether(config, given, { uid, stateRoot: root });
  return { config, given, sources: files.map(([path]) => path), stateRoot: root };
}

function resolveConfig(given: Layer): Config {
  const result = v.safeParse(ConfigSchema, unflatten(given), { abortEarly: true });
  if (result.success) return result.output;
  const [issue] = result.issues;
  let name = "";
  let item = "";
  for (const { key } of issue.path ?? []) {
    if (typeof key === "number") item = `[${key}]`;
    else name += name === "" ? String(key) : `.${String(key)}`;
  }
  throw invalidValue(name + item, issue.input, issue.message, given.get(name)?.origin);
}
