import * as v from "valibot";
import type { FleetError } from "../../base/errors.js";
import { writeDuration } from "../../base/values/measures.js";
import { isObject, redactTokens } from "../../base/values/text.js";
import { checkTogether } from "../checks.js";
import { type Key, keysBelow, keyTree } from "../keys.js";
import { type Origin, withoutSecret } from "../problem.js";
import { ConfigSchema } from "../schema.js";
import { type Given, type Layer, unflatten } from "./layers.js";
import { type ConfigFile, gather, type LoadOptions, problemOf } from "./load.js";

/** The source of a value. `name` is a flag, a variable or a path, and null for a default. */
export interface ValueOrigin {
  from: Origin["from"] | "default";
  name: string | null;
  /** The line in the file; null for other sources. */
  line: number | null;
}

export interface ValueView {
  /** The value as a file contains it. Tokens, and the password of a store, are replaced by `***`. */
  value: unknown;
  origin: ValueOrigin;
}

export interface ConfigView {
  /** The values in force by dotted key. A value that is not allowed is left out. */
  values: Record<string, ValueView>;
  /** The keys with a value that is not allowed. */
  wrong: string[];
  /** Everything that makes commands refuse the configuration. */
  problems: FleetError[];
  /** The first file takes precedence. */
  files: ConfigFile[];
}

/**
 * Reads the whole configuration for a person. Continues after a problem, and also finds problems in values that a
 * source of higher precedence replaces.
 */
export function inspectConfig(options: LoadOptions = {}): ConfigView {
  const found: FleetError[] = [];
  const report = (problem: FleetError) => void found.push(problem);
  const { files, layers, untrusted, given, stateRoot, uid, env } = gather(options, report);
  const refused = new Set<Given>();
  for (const layer of layers) {
    for (const { name, problem } of issuesOf(layer)) {
      const value = layer.get(name);
      // Ignore a value that is missing here, because another source may provide it.
      if (value === undefined) continue;
      refused.add(value);
      report(problem);
    }
  }
  for (const layer of untrusted) for (const { name, problem } of issuesOf(layer)) if (layer.has(name)) report(problem);
  const allowed = new Map([...given].filter(([, value]) => !refused.has(value)));
  const wrong = [...given.keys()].filter((name) => !allowed.has(name));
  for (const { name, problem } of issuesOf(allowed)) if (!wrong.includes(name)) report(problem);
  const result = v.safeParse(ConfigSchema, unflatten(allowed));
  if (result.success) checkTogether(result.output, allowed, { uid, stateRoot, env }, report);
  const { session, health } = result.success ? result.output : v.parse(ConfigSchema, {});
  // The defaults that depend on other keys.
  const defaults = { "session.model": session.model, "health.timeout": writeDuration(health.timeoutMs) };
  const values = [...valuesOf(allowed, defaults)].filter(([name]) => !wrong.includes(name));
  const problems = found.filter(({ message }, at) => found.findIndex((other) => other.message === message) === at);
  return { values: Object.fromEntries(values), wrong, problems, files };
}

function issuesOf(layer: Layer): { name: string; problem: FleetError }[] {
  if (layer.size === 0) return [];
  return (v.safeParse(ConfigSchema, unflatten(layer)).issues ?? []).map((issue) => problemOf(issue, layer));
}

function* valuesOf(given: Layer, defaults: Readonly<Record<string, unknown>>): Generator<[string, ValueView]> {
  for (const key of keysBelow(keyTree())) {
    if (!isInForce(key, given)) continue;
    const found = given.get(key.name);
    const value = found === undefined ? (key.initial ?? defaults[key.name] ?? null) : found.value;
    yield [key.name, { value: withoutSecrets(value, key), origin: viewOf(found?.origin) }];
  }
}

/** Whether the key has a value in force. A section has no value of its own, unless it is null. */
function isInForce(key: Key, given: Layer): boolean {
  const has = (section: string) => [...given.keys()].some((name) => name.startsWith(`${section}.`));
  const [, section] = /^(provider)\./.exec(key.name) ?? [];
  if (section === undefined) return key.kind !== "section" || (key.nullable && !has(key.name));
  // With the echo model, only `provider.type` is in force.
  return has(section) && (key.name === "provider.type" || given.get("provider.type")?.value !== "echo");
}

function withoutSecrets(value: unknown, key: Key): unknown {
  if (Array.isArray(value)) return value.map((item: unknown) => withoutSecrets(item, key));
  if (isObject(value) && key.kind === "secret") {
    const shown = ([kind, text]: [string, unknown]) => [kind, kind === "file" ? text : withoutSecrets(text, key)];
    return Object.fromEntries(Object.entries(value).map(shown));
  }
  if (isObject(value)) return withoutQueries(value);
  if (typeof value !== "string") return value;
  // Show the name of a variable, such as OPENAI_API_KEY_2. A token in capital letters would have no "_".
  const isName = /^[A-Z][A-Z0-9]*(?:_(?:[A-Z0-9]+|\{user\}))+$/.test(value);
  return isName ? redactTokens(value) : withoutSecret(value, key);
}

/** Removes secrets from an object, such as an issuer in a list. The query of an address may contain one. */
function withoutQueries(item: Record<string, unknown>): Record<string, unknown> {
  const shown = (value: unknown) =>
    typeof value === "string" ? redactTokens(value).replace(/^(https?:\/\/[^?]*)\?.+/, "$1?***") : value;
  return Object.fromEntries(Object.entries(item).map(([name, value]) => [name, shown(value)]));
}

function viewOf(origin: Origin | undefined): ValueOrigin {
  if (origin === undefined) return { from: "default", name: null, line: null };
  return { from: origin.from, name: origin.name, line: origin.line ?? null };
}

/**
 * Returns the value of a key and its origin. For a section, the value is an object with the values in it. Returns
 * undefined if the value is not allowed. `value` is null if the key has no effect, because the provider is null or is
 * the echo model.
 */
export function valueAt(
  { values, wrong }: ConfigView,
  name: string,
): { value: unknown; origin: ValueOrigin | null } | undefined {
  const found = values[name];
  if (found !== undefined) return found;
  const below = Object.entries(values).filter(([key]) => key.startsWith(`${name}.`));
  if (below.length > 0) {
    const layer = new Map(below.map(([key, { value }]) => [key.slice(name.length + 1), { value }]));
    return { value: unflatten(layer), origin: null };
  }
  return wrong.includes(name) ? undefined : { value: null, origin: values.provider?.origin ?? viewOf(undefined) };
}
