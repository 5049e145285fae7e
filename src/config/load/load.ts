import { resolve } from "node:path";
import * as v from "valibot";
import { checkTogether } from "../checks.js";
import { invalidValue, unusableFile } from "../problem.js";
import { type Config, type ConfigInput, ConfigSchema } from "../schema.js";
import { printable, shellQuote } from "../values/text.js";
import { environmentLayer } from "./environment.js";
import { findProjectFile, readConfigFile } from "./files.js";
import { fileSource, flatten, type Layer, merge, unflatten } from "./layers.js";
import { type Environment, homeFolder, stateRoot, userConfigFile } from "./paths.js";
import { refuseUntrusted } from "./trust.js";

/** A part of the configuration. A value of undefined counts as not given. */
export type PartialConfig = DeepPartial<ConfigInput>;

type DeepPartial<T> = T extends readonly unknown[]
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

/**
 * Loads the configuration. A value comes from the first of these sources that has it: flag, `COPILOTFLEET_*` variable,
 * `.copilotfleet.json` (the nearest one upward from the working folder), the user's own file, default. This function is
 * synchronous and light because every command begins with it.
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
      throw unusableFile(path, "does not exist", [`ls ${shellQuote(printable(path))}`]);
    if (path === null || file === undefined) continue;
    const layer = flatten(file.content, fileSource(path, file.text, home));
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
