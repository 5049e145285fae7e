import { homedir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { isObject } from "../../base/values/text.js";
import { type Key, keyTree } from "../keys.js";
import { invalidValue, type Origin, orNullOf, type Report, throwProblem, unknownKey } from "../problem.js";
import { lineOfKey } from "./json.js";

export interface Given {
  value: unknown;
  origin: Origin;
}

/** The values of one source by dotted key. Only known keys are in it, so a key such as `__proto__` has no effect. */
export type Layer = ReadonlyMap<string, Given>;

/**
 * Where configuration values come from. `originOf` returns the origin of a key, for messages. Relative paths are
 * resolved against `folder`, and `~` stands for `home`.
 */
export interface Source {
  originOf(name: string): Origin;
  folder: string;
  home?: string;
}

/** The source of the values in a file with this text. */
export function fileSource(path: string, text: string, home: string): Source {
  const originOf = (key: string): Origin => ({
    from: "file",
    name: path,
    // Find the line only when a message needs it.
    get line() {
      return lineOfKey(text, key);
    },
  });
  return { originOf, folder: dirname(path), home };
}

/** Flattens the input from a file or a caller. A key whose value is undefined counts as not given. */
export function flatten(input: unknown, source: Source, report: Report = throwProblem): Layer {
  const layer = new Map<string, Given>();
  const collect = (key: Key, value: unknown): void => {
    if (value === undefined) return;
    const origin = source.originOf(key.name);
    if (key.kind !== "section" || (value === null && key.nullable)) {
      layer.set(key.name, { value: absolute(key, value, source), origin });
      return;
    }
    if (!isObject(value)) {
      report(invalidValue(key.name, value, `an object${key.nullable ? orNullOf(key) : ""}`, origin));
      return;
    }
    for (const [part, item] of Object.entries(value)) {
      // Ignore this key, from which editors read the address of the schema.
      if (key.name === "" && part === "$schema") continue;
      const child = key.children.get(part);
      const name = key.name === "" ? part : `${key.name}.${part}`;
      if (child === undefined) report(unknownKey(name, source.originOf(name)));
      else collect(child, item);
    }
  };
  // Most commands set nothing. Skipping the walk through the schema saves 0.5 ms at start.
  if (!isObject(input) || Object.keys(input).length > 0) collect(keyTree(), input);
  return layer;
}

/** Resolves a path against the folder of its file, because the file may be found from many working folders. */
export function absolute(key: Key, value: unknown, { folder, home }: Pick<Source, "folder" | "home">): unknown {
  const kind = key.rule.path;
  const at = (path: string) => (path.startsWith("~/") ? join(home ?? homedir(), path.slice(2)) : resolve(folder, path));
  const isFilled = (path: unknown) => typeof path === "string" && path.trim() !== "";
  if (kind === "in-reference" && isObject(value) && isFilled(value.file))
    return { ...value, file: at(String(value.file)) };
  // The bare name of a program stays as it is, because the system looks it up on PATH.
  const isPath = isFilled(value) && (kind === "always" || (kind === "with-slash" && String(value).includes("/")));
  return isPath ? at(String(value)) : value;
}

/** Merges `layers`. The last one wins, key by key, with the exceptions of {@link dropReplaced}. */
export function merge(layers: readonly Layer[]): Layer {
  const merged = new Map<string, Given>();
  for (const layer of layers) {
    dropReplaced(merged, layer);
    for (const [name, given] of layer) merged.set(name, given);
  }
  return merged;
}

/**
 * Drops values that a higher layer replaces as a group. A provider of another type replaces the complete lower
 * provider, because the old URL and key must not be used for a different service. A layer that sets the GitHub token
 * drops the App of lower layers, and the other way round.
 */
function dropReplaced(merged: Map<string, Given>, layer: Layer): void {
  const type = layer.get("provider.type")?.value;
  const replaced = type !== undefined && type !== (merged.get("provider.type")?.value ?? "openai");
  if (replaced || layer.has("provider")) removeBelow(merged, "provider");
  if ([...layer.keys()].some((name) => name.startsWith("provider."))) merged.delete("provider");
  const sets = (start: string) => [...layer].some(([name, { value }]) => name.startsWith(start) && value !== null);
  if (sets("auth.githubToken")) removeBelow(merged, "auth.githubApp");
  else if (sets("auth.githubApp.")) merged.delete("auth.githubToken");
}

function removeBelow(merged: Map<string, Given>, section: string): void {
  for (const name of merged.keys()) if (name === section || name.startsWith(`${section}.`)) merged.delete(name);
}

export function unflatten(layer: ReadonlyMap<string, Pick<Given, "value">>): Record<string, unknown> {
  const root: Record<string, unknown> = {};
  for (const [name, { value }] of layer) {
    const parts = name.split(".");
    let at = root;
    for (const part of parts.slice(0, -1)) {
      at[part] ??= {};
      at = at[part] as Record<string, unknown>;
    }
    at[parts.at(-1) ?? name] = value;
  }
  return root;
}
