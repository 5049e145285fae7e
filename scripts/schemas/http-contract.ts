import { outputOf } from "./contract.js";
import type { JsonSchema } from "./json-schema.js";

/** A schema of an input. */
interface Input extends Omit<JsonSchema, "properties" | "items" | "anyOf"> {
  properties?: Record<string, Input>;
  items?: Input;
  anyOf?: Input[];
  oneOf?: Input[];
  const?: string | number | boolean;
  pattern?: string;
  minLength?: number;
  maxLength?: number;
  minItems?: number;
  maxItems?: number;
  minimum?: number;
  maximum?: number;
}

interface Operation {
  operationId: string;
  parameters?: { name: string; in: string; required?: boolean; schema: Input }[];
  requestBody?: { required?: boolean; content: Record<string, { schema: Input }> };
  responses: Record<string, Reference | Response>;
}

interface Reference {
  $ref: string;
}

interface Response {
  headers?: Record<string, object>;
  content?: Record<string, { schema: JsonSchema & { oneOf?: StreamEvent[] } }>;
}

/** The schema of a server-sent event. */
interface StreamEvent {
  properties: { event: { const: string }; data: JsonSchema };
}

/** The parts of an OpenAPI document that clients rely on. */
export interface OpenApi {
  paths: Record<string, Record<string, Operation>>;
  components: { schemas: Record<string, JsonSchema & Input>; responses: Record<string, Response> };
}

/** The keywords of JSON Schema that limit an input. A larger number allows more for `max…`, and less for `min…`. */
const LIMITS = ["maxLength", "maxItems", "maximum", "minLength", "minItems", "minimum", "pattern"] as const;

/**
 * Lists everything that clients of the HTTP API rely on, one promise per line, as `promisesOf()` does for the commands.
 * A line with `requires` or `limits` restricts what clients may send, so {@link breaksOf} looks for new lines of this
 * kind.
 */
export function httpPromises({ paths, components }: OpenApi): string[] {
  const root: JsonSchema = { $defs: components.schemas };
  const lines = Object.entries(paths).flatMap(([path, item]) =>
    Object.entries(item).flatMap(([method, operation]) => {
      const name = `${method.toUpperCase()} ${path}`;
      return [
        `${name} is the operation ${operation.operationId}`,
        ...inputsOf(name, operation, root),
        ...Object.entries(operation.responses).flatMap(([status, given]) =>
          answersOf(name, status, isReference(given) ? components.responses[nameIn(given)] : given, root),
        ),
      ];
    }),
  );
  const { Problem } = components.schemas;
  return [...new Set([...lines, ...(Problem === undefined ? [] : outputOf("HTTP errors ", Problem, root))])].sort();
}

function answersOf(name: string, status: string, response: Response | undefined, root: JsonSchema): string[] {
  const { headers = {}, content = {} } = response ?? {};
  const types = Object.keys(content).filter((type) => type !== "application/problem+json");
  const schema = content["application/json"]?.schema;
  const events = content["text/event-stream"]?.schema.oneOf ?? [];
  return [
    `${name} answers ${status}`,
    ...types.map((type) => `${name} answers ${status} as ${type}`),
    ...Object.keys(headers).map((header) => `${name} answers ${status} with the header ${header}`),
    ...(schema === undefined ? [] : outputOf(`${name} `, resolved(schema, root), root)),
    ...events.flatMap(({ properties: { event, data } }) =>
      outputOf(`${name} event ${event.const} `, resolved(data, root), root),
    ),
  ];
}

function inputsOf(name: string, { parameters = [], requestBody }: Operation, root: JsonSchema): string[] {
  const body = requestBody?.content["application/json"]?.schema;
  return [
    ...parameters.flatMap((parameter) => {
      const field = parameter.in === "header" ? `the header ${parameter.name}` : parameter.name;
      const isRequired = parameter.required === true && parameter.in !== "path";
      return [...(isRequired ? [`${name} requires ${field}`] : []), ...inputOf(name, field, parameter.schema, root)];
    }),
    ...(requestBody?.required === true ? [`${name} requires a body`] : []),
    ...(body === undefined ? [] : fieldsOf(name, "", resolved(body, root), root)),
  ];
}

function fieldsOf(name: string, path: string, { properties = {}, required = [] }: Input, root: JsonSchema): string[] {
  return Object.entries(properties).flatMap(([key, property]) => {
    const field = path === "" ? key : `${path}.${key}`;
    return [...(required.includes(key) ? [`${name} requires ${field}`] : []), ...inputOf(name, field, property, root)];
  });
}

/** Lists each type and each value of an input on a separate line, so that a wider type only adds lines. */
function inputOf(name: string, field: string, unresolved: Input, root: JsonSchema): string[] {
  const schema = resolved(unresolved, root);
  const { anyOf, oneOf, enum: literals, const: literal, type, items } = schema;
  const alternatives = anyOf ?? oneOf;
  if (alternatives !== undefined) return alternatives.flatMap((each) => inputOf(name, field, each, root));
  const values = literals ?? (literal === undefined ? undefined : [literal]);
  const types = values?.map((value) => JSON.stringify(value)) ?? [type ?? "anything"].flat();
  const limits = LIMITS.filter((limit) => schema[limit] !== undefined);
  return [
    ...types.map((each) => `${name} accepts ${field} as ${each}`),
    ...limits.map((limit) => `${name} limits ${field} to ${limit} ${schema[limit]}`),
    ...fieldsOf(name, field, schema, root),
    ...(items === undefined ? [] : inputOf(name, `${field}[]`, items, root)),
  ];
}

const RESTRICTION =
  /^(?<name>\S+ \S+) (?<kind>requires|limits) (?<field>(?:the header )?\S+|a body)(?: to (?<limit>.*))?$/;

/**
 * Finds the promises that a change breaks.
 *
 * @param committed the promises so far, one per line
 * @returns the committed lines that `promises` no longer contains, and new lines that refuse what was accepted before
 */
export function breaksOf(
  committed: readonly string[],
  promises: readonly string[],
): { lost: string[]; refused: string[] } {
  const known = new Set(committed);
  const kept = new Set(promises);
  return {
    lost: committed.filter((line) => !kept.has(line) && !RESTRICTION.test(line) && !isWidened(line, kept)),
    refused: promises.filter((line) => !known.has(line) && isRefusal(line, committed)),
  };
}

function isRefusal(line: string, committed: readonly string[]): boolean {
  const { name = "", kind, field = "", limit = "" } = RESTRICTION.exec(line)?.groups ?? {};
  if (kind === undefined) return false;
  // If no committed line accepts anything at the field's place, the field is new. So far, no client sends it, so a line
  // that restricts it breaks no client.
  const place = kind === "requires" ? field.replace(/\.?[^.]*$/, "") : field;
  const start = place === "" ? `${name} is the operation ` : `${name} accepts ${place} as `;
  if (!committed.some((each) => each.startsWith(start))) return false;
  return kind === "requires" || !committed.some((each) => isWithin(each, `${name} limits ${field} to `, limit));
}

/** Whether a committed line limits the same field in the same way, and the new limit allows at least as much. */
function isWithin(line: string, start: string, limit: string): boolean {
  if (!line.startsWith(start)) return false;
  const [kind = "", now] = limit.split(" ");
  const [before, old] = line.slice(start.length).split(" ");
  if (kind === "pattern" || kind !== before) return false;
  return kind.startsWith("max") ? Number(now) >= Number(old) : Number(now) <= Number(old);
}

/** Whether a line about one accepted text was removed only because the input now accepts any text. */
function isWidened(line: string, promises: ReadonlySet<string>): boolean {
  const start = /^\S+ \S+ accepts (?:the header )?\S+ as (?=")/.exec(line)?.[0];
  return start !== undefined && promises.has(`${start}string`);
}

function resolved<Schema extends { $ref?: string }>(schema: Schema, root: JsonSchema): Schema {
  return isReference(schema) ? ((root.$defs?.[nameIn(schema)] ?? {}) as Schema) : schema;
}

function isReference(given: object): given is Reference {
  return "$ref" in given && given.$ref !== undefined;
}

function nameIn({ $ref }: Reference): string {
  return $ref.slice($ref.lastIndexOf("/") + 1);
}
