import type { CommandSnapshot, FlagSnapshot } from "./commands.js";
import type { JsonSchema } from "./json-schema.js";

/**
 * Lists everything that scripts rely on, one promise per line. An addition to the commands or to their output adds
 * lines and keeps all others. A removal, another name or another type removes a line. So each break shows as a missing
 * line.
 */
export function promisesOf(
  commands: Readonly<Record<string, CommandSnapshot>>,
  outputs: Readonly<Record<string, JsonSchema>>,
  exitCodes: Readonly<Record<string, number>>,
): string[] {
  const lines = [
    ...Object.entries(commands).flatMap(([name, command]) => inputOf(name, command)),
    ...Object.entries(outputs).flatMap(([name, schema]) => outputOf(`${name} --json `, schema, schema)),
    ...Object.entries(exitCodes).map(([code, exit]) => `${code} exits with ${exit}`),
  ];
  return [...new Set(lines)].sort();
}

/** Lists the arguments and flags of a command. */
function inputOf(name: string, { aliases = [], args, strict, flags }: CommandSnapshot): string[] {
  const required = [
    ...args.filter((arg) => arg.required).map((arg) => arg.name.toUpperCase()),
    ...Object.entries(flags).flatMap(([flag, { required }]) => (required ? `--${flag}` : [])),
  ];
  return [
    `${name} requires ${required.join(", ") || "nothing"}`,
    ...aliases.map((alias) => `${name} is also ${alias}`),
    ...args.map((arg, index) => `${name} argument ${index + 1} is ${arg.name.toUpperCase()}`),
    ...args.flatMap((arg) => (arg.options ?? []).map((option) => `${name} ${arg.name.toUpperCase()} may be ${option}`)),
    ...(strict ? [] : [`${name} accepts any number of arguments`]),
    ...Object.entries(flags).flatMap(([flag, snapshot]) => flagOf(`${name} --${flag}`, snapshot)),
  ];
}

function flagOf(flag: string, snapshot: FlagSnapshot): string[] {
  const { type, char, aliases = [], allowNo, multiple, options = [], default: value } = snapshot;
  const { dependsOn, exclusive, relationships } = snapshot;
  const conditions = Object.entries({ dependsOn, exclusive, relationships })
    .filter(([, others]) => others !== undefined)
    .map(([condition, others]) => `, ${condition} ${JSON.stringify(others)}`);
  const takes = type === "boolean" ? "" : options.length > 0 ? " CHOICE" : " VALUE";
  return [
    `${flag}${takes}${multiple ? "…" : ""}${conditions.join("")}`,
    ...(char === undefined ? [] : [`${flag} is also -${char}`]),
    ...aliases.map((alias) => `${flag} is also --${alias}`),
    ...(allowNo ? [`${flag} can be negated`] : []),
    ...options.map((option) => `${flag} may be ${option}`),
    ...(value === undefined ? [] : [`${flag} defaults to ${JSON.stringify(value)}`]),
  ];
}

/** Lists the fields of an output, with the path to each. `?` marks a field that can be missing. */
export function outputOf(path: string, schema: JsonSchema, root: JsonSchema): string[] {
  const { properties = {}, required = [], additionalProperties, items, anyOf = [], enum: literals = [] } = schema;
  const isObject = (part: JsonSchema) => resolved(part, root).properties !== undefined;
  const hasShapes = anyOf.filter(isObject).length > 1;
  const below = (step: string, part: JsonSchema) => outputOf(`${path}${step}`, resolved(part, root), root);
  return [
    ...literals.filter((literal) => literal !== null).map((literal) => `${path} may be ${JSON.stringify(literal)}`),
    ...Object.entries(properties).flatMap(([key, property]) => {
      const step = path.endsWith(" ") ? key : `.${key}`;
      const isOptional = required.includes(key) ? "" : "?";
      return [`${path}${step}${isOptional}: ${typeOf(property, root)}`, ...below(step, property)];
    }),
    ...anyOf.flatMap((part) => {
      if (!hasShapes || !isObject(part)) return below("", part);
      if (part.$ref === undefined) throw new Error(`${path}: give each object type of this union a name.`);
      return below(`(${nameIn(part.$ref)}) `, part);
    }),
    ...(items === undefined ? [] : below("[]", items)),
    ...(additionalProperties ? below(".*", additionalProperties) : []),
  ];
}

function typeOf(unresolved: JsonSchema, root: JsonSchema): string {
  const { anyOf, enum: literals, items, additionalProperties, type = "anything" } = resolved(unresolved, root);
  if (anyOf !== undefined) return joined(anyOf.map((part) => typeOf(part, root)));
  if (literals !== undefined) return joined(literals.map((value) => (value === null ? "null" : typeof value)));
  if (items !== undefined) return `array of ${typeOf(items, root)}`;
  if (additionalProperties) return `map of ${typeOf(additionalProperties, root)}`;
  return joined([type].flat());
}

function joined(types: string[]): string {
  return [...new Set(types)].sort().join(" | ");
}

function resolved(schema: JsonSchema, root: JsonSchema): JsonSchema {
  return schema.$ref === undefined ? schema : (root.$defs?.[nameIn(schema.$ref)] ?? {});
}

function nameIn(ref: string): string {
  return ref.slice(ref.lastIndexOf("/") + 1);
}
