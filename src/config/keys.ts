import { closest, distance } from "fastest-levenshtein";
import * as v from "valibot";
import type { Rule } from "./rules.js";
import { ConfigSchema } from "./schema.js";

/** What the schema says about its keys, read from the schema itself so that there is one list of them. */
export interface Key {
  /** Dotted, from the top: "session.maxActive". */
  name: string;
  /** Its environment variable: "COPILOTFLEET_SESSION_MAX_ACTIVE". */
  variable: string;
  kind: "text" | "number" | "boolean" | "list" | "section";
  nullable: boolean;
  rule: Rule;
  /** A section's keys by their last part; empty for a value. */
  children: ReadonlyMap<string, Key>;
}

const KINDS: Record<string, Key["kind"]> = {
  number: "number",
  boolean: "boolean",
  array: "list",
  strict_object: "section",
};

let root: Key | undefined;

/** The whole tree, as a section without a name. Built on first use. */
export function keyTree(): Key {
  root ??= describe("", ConfigSchema);
  return root;
}

function describe(name: string, given: v.GenericSchema): Key {
  let schema = given;
  let nullable = false;
  while ("wrapped" in schema) {
    nullable ||= schema.type === "nullable";
    schema = schema.wrapped as v.GenericSchema;
  }
  const entries = "entries" in schema ? (schema.entries as Record<string, v.GenericSchema>) : {};
  const prefix = name === "" ? "" : `${name}.`;
  return {
    name,
    variable: `COPILOTFLEET_${name
      .replaceAll(".", "_")
      .replace(/(?<=[a-z])[A-Z]/g, "_$&")
      .toUpperCase()}`,
    kind: KINDS[schema.type] ?? "text",
    nullable,
    rule: v.getMetadata(schema) as Rule,
    children: new Map(Object.entries(entries).map(([part, child]) => [part, describe(prefix + part, child)])),
  };
}

/** Every key below `key`, sections before what is in them. */
export function* keysBelow(key: Key): Generator<Key> {
  for (const child of key.children.values()) {
    yield child;
    yield* keysBelow(child);
  }
}

/** The key of that dotted name, or undefined. */
export function findKey(name: string): Key | undefined {
  let key: Key | undefined = keyTree();
  for (const part of name.split(".")) key = key?.children.get(part);
  return key;
}

/**
 * The known keys nearest to an unknown dotted name: by the whole name, or by the last part alone, as who writes "ttl"
 * at the top means one of those further down. More than one when they are equally near.
 */
export function nearestKeys(name: string): string[] {
  const written = name.toLowerCase();
  const last = written.slice(written.lastIndexOf(".") + 1);
  const ranked = [...keysBelow(keyTree())].map((key) => {
    const known = key.name.toLowerCase();
    const whole = distance(written, known);
    const part = distance(last, known.slice(known.lastIndexOf(".") + 1));
    // One more for a key that is in another section than the one written.
    return { name: key.name, cost: Math.min(whole, part + 1) };
  });
  const least = Math.min(...ranked.map(({ cost }) => cost));
  return ranked.filter(({ cost }) => cost === least).map(({ name: known }) => known);
}

/** The known variable nearest to `name`. */
export function nearestVariable(name: string): string {
  return closest(
    name,
    [...keysBelow(keyTree())].map((key) => key.variable),
  );
}
