import { homedir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { isObject } from "../../base/values/text.js";
import { type Key, keyTree } from "../keys.js";
import { invalidValue, type Origin, orNullOf, type Report, throwProblem, unknownKey } from "../problem.js";

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
export function flatten(input: unknown, source: Source, report = throwProblem): Layer {
  const layer = new Map<string, Given>();
  // Most commands set nothing. Skipping the walk through the schema saves 0.5 ms at start.
  if (isObject(input) && Object.keys(input).length === 0) return layer;
  collect(keyTree(), input, { source, report, layer });
  return layer;
}

interface Collection {
  source: Source;
  report: Report;
  layer: Map<string, Given>;
}

function collect(key: Key, value: unknown, collection: Collection): void {
  const { source, report, layer } = collection;
  if (value === undefined) return;
  const origin = source.originOf(key.name);
  if (key.kind !== "section" || (value === null && key.nullable)) {
    layer.set(key.name, { value: absolute(key, value, source), origin });
    return;
  }
  if (!isObject(value)) {
    report(invalidValue(key.name, value, `an object${key.nullable ? orNullOf(key.name) : ""}`, origin));
    return;
  }
  for (const [part, item] of Object.entries(value)) {
    // Ignore this key, from which editors read the address of the schema.
    if (key.name === "" && part === "$schema") continue;
    const child = key.children.get(part);
    const name = key.name === "" ? part : `${key.name}.${part}`;
    if (child === undefined) report(unknownKey(name, source.originOf(name)));
    else collect(child, item, collection);
  }
}

/** Resolves a path against the folder of its file, because the file may be found from many working folders. */
export function absolute(key: Key, value: unknown, source: Pick<Source, "folder" | "home">): unknown {
  const kind = key.rule.path;
  if (kind === "in-reference" && isObject(value)) {
    const { file } = value;
    return typeof file === "string" && file.trim() !== "" ? { ...value, file: resolvePath(file, source) } : value;
  }
  if (kind === undefined || typeof value !== "string" || value.trim() === "") return value;
  // The bare name of a program stays as it is, because the system looks it up on PATH.
  return kind === "always" || value.includes("/") ? resolvePath(value, source) : value;
}

function resolvePath(path: string, { folder, home }: Pick<Source, "folder" | "home">): string {
  return path.startsWith("~/") ? join(home ?? homedir(), path.slice(2)) : resolve(folder, path);
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

// Matches a string, a punctuation character, or a number or literal, in a text that is JSON.
const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g;

/** An open object or list. `index` is the position of the current item of a list, and null in an object. */
interface Open {
  name: string;
  index: number | null;
}

/**
 * Returns the line of a key in a text that `JSON.parse` accepts, or undefined if the key is not there. If a key is
 * there twice, the last one counts, as for `JSON.parse`.
 *
 * @param name the dotted key, with an index ("runtime.args[0]") for an item of a list
 */
export function lineOfKey(text: string, name: string): number | undefined {
  const open: Open[] = [];
  /** The name of the next value. */
  let next = "";
  let expectsName = false;
  let found: number | undefined;
  for (const { 0: token, index: at } of text.matchAll(TOKEN)) {
    const inside = open.at(-1);
    if (token === "," && inside !== undefined) {
      if (inside.index === null) expectsName = true;
      else next = `${inside.name}[${++inside.index}]`;
    } else if (token === "}" || token === "]") {
      open.pop();
      expectsName = false;
    } else if (token !== ":") {
      if (expectsName) {
        const part = JSON.parse(token) as string;
        next = inside === undefined || inside.name === "" ? part : `${inside.name}.${part}`;
      }
      // A key is on the line of its name. An item of a list has no name, so it is on the line of its value.
      if ((expectsName || inside?.index != null) && next === name) found = at;
      if (expectsName) expectsName = false;
      else if (token === "{") {
        open.push({ name: next, index: null });
        expectsName = true;
      } else if (token === "[") {
        open.push({ name: next, index: 0 });
        next = `${next}[0]`;
      }
    }
  }
  return found === undefined ? undefined : text.slice(0, found).split("\n").length;
}
