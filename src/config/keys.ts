import { distance } from "fastest-levenshtein";
import * as v from "valibot";
import { mostSlips, nearestOf, slips } from "../base/values/names.js";
import type { Rule } from "./rules.js";
import { type About, ConfigSchema } from "./schema.js";

/** A configuration key. The keys are derived from the schema, so that there is only one list of them. */
export interface Key {
  /** The dotted name: "session.maxActive". */
  name: string;
  /** The environment variable: "COPILOTFLEET_SESSION_MAX_ACTIVE". */
  variable: string;
  kind: "text" | "number" | "boolean" | "list" | "secret" | "section";
  nullable: boolean;
  /** The default as a file contains it. Undefined if it depends on other keys. */
  initial: unknown;
  /** An allowed value: the default, or another one if the default is null, empty, or depends on other keys. */
  example: unknown;
  rule: Partial<Rule & About>;
  /** The keys of a section by the last part of their names; empty for a value. */
  children: ReadonlyMap<string, Key>;
}

const KINDS: Record<string, Key["kind"]> = {
  number: "number",
  boolean: "boolean",
  array: "list",
  custom: "secret",
  strict_object: "section",
};

let root: Key | undefined;

/** The tree of all keys, as a section without a name. Built on first use. */
export function keyTree(): Key {
  root ??= describe("", ConfigSchema);
  return root;
}

function describe(name: string, given: v.GenericSchema): Key {
  let schema = given;
  let nullable = false;
  let rule: Key["rule"] = v.getMetadata(schema);
  while ("wrapped" in schema) {
    nullable ||= schema.type === "nullable";
    schema = schema.wrapped as v.GenericSchema;
    rule = { ...v.getMetadata(schema), ...rule };
  }
  const entries = "entries" in schema ? (schema.entries as Record<string, v.GenericSchema>) : {};
  const prefix = name === "" ? "" : `${name}.`;
  const initial = v.getDefault(given);
  return {
    name,
    variable: `COPILOTFLEET_${asVariable(name)}`,
    kind: KINDS[schema.type] ?? "text",
    nullable,
    initial,
    example: typeof (initial ?? {}) === "object" ? rule.example : initial,
    rule,
    children: new Map(Object.entries(entries).map(([part, child]) => [part, describe(prefix + part, child)])),
  };
}

/** A dotted name as in the name of a variable: "session.maxActive" is "SESSION_MAX_ACTIVE". */
export function asVariable(name: string): string {
  return name
    .replaceAll(".", "_")
    .replace(/(?<=[a-z])[A-Z]/g, "_$&")
    .toUpperCase();
}

/** Yields every key below `key`, a section before the keys in it. */
export function* keysBelow(key: Key): Generator<Key> {
  for (const child of key.children.values()) {
    yield child;
    yield* keysBelow(child);
  }
}

export function findKey(name: string): Key | undefined {
  const key = keyAt(name);
  return name !== "" && key.name === name ? key : undefined;
}

/** The key to which a dotted name belongs. The name may lead into the key's value: "runtime.args[0]". */
export function keyAt(name: string): Key {
  let key = keyTree();
  for (const part of name.split(/[.[]/)) {
    const child = key.children.get(part);
    if (child === undefined) break;
    key = child;
  }
  return key;
}

/**
 * Returns the known keys that a user may have meant by an unknown dotted name, namely those with the fewest
 * differences. Compares the whole name and the last part alone, because a user who writes "ttl" at the top level means
 * one of the keys in the sections.
 */
export function nearestKeys(name: string): string[] {
  const written = name.toLowerCase();
  const last = written.slice(written.lastIndexOf(".") + 1);
  const ranked = [...keysBelow(keyTree())].map((key) => {
    const known = key.name.toLowerCase();
    const end = known.slice(known.lastIndexOf(".") + 1);
    const isSlip = slips(last, end) <= mostSlips(last) || (last.length > 2 && end.startsWith(last));
    // A match of the last part alone costs one more, because the section differs.
    return { name: key.name, isSlip, cost: Math.min(distance(written, known), distance(last, end) + 1) };
  });
  const least = Math.min(...ranked.map(({ cost }) => cost));
  return ranked.filter(({ cost, isSlip }) => cost === least && isSlip).map((key) => key.name);
}

/** The variables of all keys. A section has a variable only if it can be null. */
export function keyVariables(): string[] {
  return [...keysBelow(keyTree())]
    .filter(({ kind, nullable }) => kind !== "section" || nullable)
    .map((key) => key.variable);
}

/** The known variable that a user may have misspelled or written only in part; null if there is none. */
export function nearestVariable(name: string): string | null {
  return nearestOf(name, keyVariables(), (variable) => variable)[0] ?? null;
}
