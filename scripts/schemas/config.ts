import { toJsonSchema } from "@valibot/to-json-schema";
import { type Key, keyTree } from "../../src/config/keys.js";
import { valuesWithoutTrust } from "../../src/config/load/files.js";
import { ConfigSchema } from "../../src/config/schema.js";

/** The part of JSON Schema, draft 2020-12, that describes the configuration. */
export interface ConfigJsonSchema {
  $schema?: string;
  title?: string;
  description?: string;
  type?: string | string[];
  enum?: unknown[];
  anyOf?: ConfigJsonSchema[];
  items?: ConfigJsonSchema;
  pattern?: string;
  default?: unknown;
  examples?: readonly unknown[];
  properties?: Record<string, ConfigJsonSchema>;
  additionalProperties?: boolean;
}

const REFERENCE = {
  type: "object" as const,
  propertyNames: { enum: ["env", "file", "command"] },
  additionalProperties: { type: "string" as const },
  minProperties: 1,
  maxProperties: 1,
};

/** The JSON Schema of a configuration file. */
export function configSchema(): ConfigJsonSchema {
  const derived = toJsonSchema(ConfigSchema, {
    target: "draft-2020-12",
    typeMode: "input",
    ignoreActions: ["raw_transform", "transform", "check", "metadata"],
    // The only custom schema is that of references to secrets.
    overrideSchema: ({ valibotSchema }) => (valibotSchema.type === "custom" ? REFERENCE : undefined),
  }) as ConfigJsonSchema;
  const { properties, ...rest } = complete(keyTree(), derived);
  return {
    $schema: "https://json-schema.org/draft/2020-12/schema",
    title: "Configuration of copilotfleet",
    description: "A .copilotfleet.json file, or config.json in the user's configuration folder.",
    ...rest,
    properties: {
      $schema: { type: "string", description: "The address of this schema, for editors." },
      ...properties,
    },
  };
}

/** Adds the descriptions to the schema of a key and of the keys below it. Leaves out what editors do not need. */
function complete(key: Key, derived: ConfigJsonSchema): ConfigJsonSchema {
  const { default: initial, ...schema } = simplified(derived);
  if (key.kind !== "section") {
    const description = plain(`${meaningOf(key)}${guardedWords(key)}`);
    return {
      ...schema,
      ...(key.rule.pattern === undefined ? {} : { pattern: key.rule.pattern }),
      description,
      ...(initial === undefined ? {} : { default: initial }),
      examples: [key.example],
    };
  }
  const children = [...key.children].map(
    ([part, child]) => [part, complete(child, schema.properties?.[part] ?? {})] as const,
  );
  const description = key.name === "" ? {} : { description: plain(`${meaningOf(key)}${guardedWords(key)}`) };
  return { ...schema, ...description, properties: Object.fromEntries(children) };
}

/** Writes "X or null" as one type list, and leaves out `required`, because no key of the configuration is required. */
function simplified({ anyOf, ...others }: ConfigJsonSchema & { required?: unknown }): ConfigJsonSchema {
  const [first, second, ...rest] = anyOf ?? [];
  const isNullable = first !== undefined && second?.type === "null" && rest.length === 0;
  if (anyOf !== undefined && !isNullable) throw new Error("A key has alternatives other than null.");
  const { required: _, ...schema } = { ...first, ...others } as ConfigJsonSchema & { required?: unknown };
  if (!isNullable) return schema;
  if (schema.enum !== undefined) schema.enum = [...schema.enum, null];
  return { ...schema, type: [schema.type ?? [], "null"].flat() };
}

function guardedWords(key: Key): string {
  const found = valuesWithoutTrust(key.name);
  if (found === "all" || (key.kind === "section" && !key.nullable)) return "";
  const except = found.length === 0 ? "" : `, except to ${found.map((value) => JSON.stringify(value)).join()}`;
  return ` A project's .copilotfleet.json may set it${except} only if you trust the file (copilotfleet trust).`;
}

/** Removes the links and code marks of Markdown, because not every editor renders them. */
function plain(markdown: string): string {
  return markdown
    .replace(/ See \[[^\]]*\]\([^)]*\)\./g, "")
    .replace(/\[([^\]]*)\]\([^)]*\)/g, "$1")
    .replaceAll("`", "");
}

function meaningOf({ name, rule }: Key): string {
  if (rule.meaning === undefined) throw new Error(`src/config/schema.ts does not describe the key ${name}.`);
  return `${rule.meaning}${rule.nothing === undefined ? "" : ` \`null\`: ${rule.nothing}.`}`;
}

const PAGE_HEAD = `<!-- "npm run schemas" writes this page. Edit src/config/schema.ts instead. -->

# Configuration keys

[Configuration](configuration.md) explains where settings come from. An editor completes the keys of a file that names
the [JSON Schema](../schemas/config.json) in \`$schema\`.

- A key with a \`*\` is guarded: a project's \`.copilotfleet.json\` may set it only if
  [you trust the file](configuration.md#project-files-need-your-trust). The values in "needs no trust" are exceptions.
- A duration is a number with a unit: \`ms\`, \`s\`, \`m\`, \`h\`, \`d\` or \`w\`, such as \`30s\` or \`1h30m\`. A size has the unit
  \`kb\`, \`mb\` or \`gb\`, and counts by 1024.
- In a variable, commas separate the items of a list, objects are JSON, and \`null\` means null.
- A secret is a reference: \`{"env": "NAME"}\` for a variable, \`{"file": "PATH"}\` for a file that only its owner can use, or
  \`{"command": "…"}\` for a command that prints the secret within 10 s. With \`_FILE\` at its end, the variable of such a key
  contains the path of the file.
`;

/** The Markdown page with every key. */
export function configPage(schema: ConfigJsonSchema): string {
  const parts = [...keyTree().children.values()].map((key) => {
    const rows = rowsOf(key, schema.properties?.[key.name] ?? {});
    const intro = key.kind === "section" ? `\n${[meaningOf(key), ...innerSections(key)].join("\n")}\n` : "";
    const head = "| key | type | default | meaning | variable |\n| --- | --- | --- | --- | --- |";
    return `\n## ${key.name}\n${intro}\n${[head, ...rows].join("\n")}\n`;
  });
  return `${PAGE_HEAD}${parts.join("")}`;
}

/** The descriptions of the sections in a section, as a list. */
function innerSections(key: Key): string[] {
  const inner = [...key.children.values()].filter(({ kind }) => kind === "section");
  const lines = inner.map((section) => `- \`${section.name}\`: ${meaningOf(section)}`);
  return lines.length === 0 ? [] : ["", ...lines];
}

function rowsOf(key: Key, schema: ConfigJsonSchema): string[] {
  if (key.kind !== "section") {
    const initial = key.rule.inWords ?? code(schema.default);
    return [row(key, typeOf(key, schema), initial, `${meaningOf(key)}${exceptions(key)}`)];
  }
  const own = key.nullable ? [row(key, "object or `null`", code(null), meaningOf(key))] : [];
  const below = [...key.children].flatMap(([part, child]) => rowsOf(child, schema.properties?.[part] ?? {}));
  return [...own, ...below];
}

function row(key: Key, type: string, initial: string, meaning: string): string {
  const star = valuesWithoutTrust(key.name) === "all" ? "" : "*";
  return `| \`${key.name}\`${star} | ${type} | ${initial} | ${meaning} | \`${key.variable}\` |`;
}

function exceptions({ name }: Key): string {
  const found = valuesWithoutTrust(name);
  return found === "all" || found.length === 0 ? "" : ` Needs no trust: ${found.map(code).join(", ")}.`;
}

const TYPES: Readonly<Record<string, string>> = {
  string: "text",
  integer: "whole number",
  boolean: "`true` or `false`",
  array: "list of texts",
};

function typeOf({ rule, nullable }: Key, { enum: choices, type }: ConfigJsonSchema): string {
  const [first = ""] = [type ?? []].flat();
  const name = choices === undefined ? (rule.kind ?? TYPES[first] ?? first) : choices.map(code).join(", ");
  return nullable ? `${name} or \`null\`` : name;
}

function code(value: unknown): string {
  return `\`${JSON.stringify(value)}\``;
}
