import { homedir } from "node:os";
import { join, resolve } from "node:path";
import { type Key, keyTree } from "./keys.js";
import { invalidValue, type Origin, unknownKey } from "./problem.js";

/** A value and where it was given. */
export interface Given {
  value: unknown;
  origin: Origin;
}

/** What one source says, flat: dotted key to value. Only known keys are ever in it, so none can reach a prototype. */
export type Layer = ReadonlyMap<string, Given>;

/** How to call the place of a key in a source, and which folder its relative paths count from. */
export interface Source {
  originOf(name: string): Origin;
  folder: string;
  home?: string;
}

/**
 * Flattens what a file or a caller gives. A key whose value is undefined counts as not given.
 *
 * @throws FleetError `FLEET_CONFIG_KEY_UNKNOWN`, or `FLEET_CONFIG_INVALID` where an object has to be and is not.
 */
export function flatten(input: unknown, source: Source): Layer {
  const layer = new Map<string, Given>();
  // The usual command sets nothing: it is not worth walking the schema for (0.5 ms of start-up).
  if (isPlainObject(input) && Object.keys(input).length === 0) return layer;
  collect(keyTree(), input, source, layer);
  return layer;
}

function collect(key: Key, value: unknown, source: Source, layer: Map<string, Given>): void {
  if (value === undefined) return;
  const origin = source.originOf(key.name);
  if (key.kind !== "section" || (value === null && key.nullable)) {
    layer.set(key.name, { value: absolute(key, value, source), origin });
    return;
  }
  if (!isPlainObject(value)) {
    throw invalidValue(key.name, value, `an object${key.nullable ? " or null" : ""}`, origin);
  }
  for (const [part, item] of Object.entries(value)) {
    const child = key.children.get(part);
    const name = key.name === "" ? part : `${key.name}.${part}`;
    if (child === undefined) throw unknownKey(name, source.originOf(name));
    collect(child, item, source, layer);
  }
}

function isPlainObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A file's paths count from that file, as it may be found from many working folders. "~/" is the home folder. */
export function absolute(key: Key, value: unknown, source: Pick<Source, "folder" | "home">): unknown {
  const kind = key.rule.path;
  if (kind === undefined || typeof value !== "string" || value.trim() === "") return value;
  if (value.startsWith("~/")) return join(source.home ?? homedir(), value.slice(2));
  // A bare name of a program is for PATH to find.
  return kind === "always" || value.includes("/") ? resolve(source.folder, value) : value;
}

/** Lays `layers` over one another; the last wins. Values replace one another key by key, with two exceptions. */
export function merge(layers: readonly Layer[]): Layer {
  const merged = new Map<string, Given>();
  for (const layer of layers) {
    dropReplaced(merged, layer);
    for (const [name, given] of layer) merged.set(name, given);
  }
  return merged;
}

/**
 * The exceptions. A provider of another type replaces the lower one whole: the old one's URL and key would go to a
 * service they were not meant for. And the ways to get a token are one choice: naming one lets go of the others.
 */
function dropReplaced(merged: Map<string, Given>, layer: Layer): void {
  const type = layer.get("provider.type")?.value;
  const replaced = type !== undefined && type !== (merged.get("provider.type")?.value ?? "openai");
  if (replaced || layer.has("provider")) removeBelow(merged, "provider");
  if ([...layer.keys()].some((name) => name.startsWith("provider."))) merged.delete("provider");
  const choosesAuth = [...layer].some(([name, { value }]) => name.startsWith("auth.") && value !== null);
  if (choosesAuth) removeBelow(merged, "auth");
}

function removeBelow(merged: Map<string, Given>, section: string): void {
  for (const name of merged.keys()) if (name === section || name.startsWith(`${section}.`)) merged.delete(name);
}

/** The nested form of a flat layer. */
export function unflatten(layer: Layer): Record<string, unknown> {
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
