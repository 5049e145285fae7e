import ts from "typescript";

/** The part of JSON Schema, draft 2020-12, that describes the output of the commands. */
export interface JsonSchema {
  $schema?: string;
  title?: string;
  description?: string;
  $ref?: string;
  type?: string | string[];
  enum?: Literal[];
  anyOf?: JsonSchema[];
  properties?: Record<string, JsonSchema>;
  required?: string[];
  additionalProperties?: JsonSchema | false;
  items?: JsonSchema;
  $defs?: Record<string, JsonSchema>;
}

type Literal = string | number | boolean | null;

/**
 * Derives the schema of a type's JSON. Objects may have more properties than the schema names, so that a reader accepts
 * the output of later versions. Properties are in alphabetical order, so that their order in the source does not matter.
 */
export function schemaOf(title: string, type: ts.Type, checker: ts.TypeChecker): JsonSchema {
  return new Deriver(checker).whole(title, type);
}

class Deriver {
  readonly #checker: ts.TypeChecker;
  /** Each named object type becomes one definition. */
  readonly #definitions: Record<string, JsonSchema> = {};
  readonly #named = new Map<string, ts.Type>();

  constructor(checker: ts.TypeChecker) {
    this.#checker = checker;
  }

  whole(title: string, type: ts.Type): JsonSchema {
    const schema = type.isUnion() ? this.#schema(type, title) : this.#object(type, title);
    const definitions = sorted(this.#definitions);
    return {
      $schema: "https://json-schema.org/draft/2020-12/schema",
      title,
      ...schema,
      ...(Object.keys(definitions).length === 0 ? {} : { $defs: definitions }),
    };
  }

  /** @param at the place of the type in the output, for messages */
  #schema(type: ts.Type, at: string): JsonSchema {
    const { flags } = type;
    if (flags & ts.TypeFlags.Unknown) return {};
    if (flags & ts.TypeFlags.Null) return { type: "null" };
    if (flags & ts.TypeFlags.Boolean) return { type: "boolean" };
    if (flags & ts.TypeFlags.BooleanLiteral) return { enum: [this.#checker.typeToString(type) === "true"] };
    if (type.isStringLiteral() || type.isNumberLiteral()) return { enum: [type.value] };
    if (flags & ts.TypeFlags.StringLike) return { type: "string" };
    if (flags & ts.TypeFlags.NumberLike) return { type: "number" };
    if (flags & ts.TypeFlags.NonPrimitive) return { type: "object" };
    if (type.isUnion()) return union(type.types.filter(isPresent).map((part) => this.#schema(part, at)));
    if (!(flags & (ts.TypeFlags.Object | ts.TypeFlags.Intersection)) || type.getCallSignatures().length > 0)
      throw new Error(`${at} has the type ${this.#checker.typeToString(type)}, which JSON Schema cannot describe.`);
    if (this.#checker.isArrayType(type)) {
      const [item] = this.#checker.getTypeArguments(type as ts.TypeReference);
      return { type: "array", items: item === undefined ? {} : this.#schema(item, `${at}[]`) };
    }
    const name = nameOf(type);
    return name === undefined ? this.#object(type, at) : this.#reference(name, type, at);
  }

  #reference(name: string, type: ts.Type, at: string): JsonSchema {
    const known = this.#named.get(name);
    if (known !== undefined && known !== type) throw new Error(`${at}: two types have the name ${name}.`);
    if (known === undefined) {
      this.#named.set(name, type);
      this.#definitions[name] = this.#object(type, at);
    }
    return { $ref: `#/$defs/${name}` };
  }

  #object(type: ts.Type, at: string): JsonSchema {
    const properties: Record<string, JsonSchema> = {};
    const required: string[] = [];
    for (const property of type.getProperties()) {
      const valueType = this.#checker.getTypeOfSymbol(property);
      const description = documentation(property, this.#checker);
      properties[property.name] = {
        ...this.#schema(valueType, `${at} ${property.name}`),
        ...(description === "" ? {} : { description }),
      };
      if (!(property.flags & ts.SymbolFlags.Optional) && isPresent(valueType)) required.push(property.name);
    }
    const others = type.getStringIndexType();
    return {
      type: "object",
      ...(Object.keys(properties).length === 0 ? {} : { properties: sorted(properties) }),
      ...(required.length === 0 ? {} : { required: required.sort() }),
      ...(others === undefined ? {} : { additionalProperties: this.#schema(others, at) }),
    };
  }
}

/** Whether a property of this type is always in the JSON. JSON leaves out a property that is undefined. */
function isPresent(type: ts.Type): boolean {
  const parts = type.isUnion() ? type.types : [type];
  return parts.every(({ flags }) => !(flags & ts.TypeFlags.Undefined));
}

/** The name of an object type that this repository declares. Undefined for types of packages, and for generic types. */
function nameOf(type: ts.Type): string | undefined {
  const symbol = type.aliasSymbol ?? type.symbol;
  const isOurs = symbol?.declarations?.some((at) => !at.getSourceFile().isDeclarationFile) === true;
  return isOurs && type.aliasTypeArguments === undefined && symbol.name !== "__type" ? symbol.name : undefined;
}

function documentation(symbol: ts.Symbol, checker: ts.TypeChecker): string {
  const text = ts.displayPartsToString(symbol.getDocumentationComment(checker));
  return text.replace(/\{@link ([^}]+)\}/g, "$1").replace(/\s+/g, " ");
}

/** Writes literals as one enumeration and simple types as one list. */
function union(parts: JsonSchema[]): JsonSchema {
  const literals = new Set(parts.flatMap((part) => part.enum ?? []));
  const types = new Set(parts.flatMap((part) => (isSimple(part) ? (part.type ?? []) : [])));
  const shapes = parts.filter((part) => part.enum === undefined && !isSimple(part));
  if (literals.has(true) && literals.has(false)) {
    types.add("boolean");
    literals.delete(true);
    literals.delete(false);
  }
  if (literals.size > 0 && types.delete("null")) literals.add(null);
  if (literals.size > 0) shapes.push({ enum: [...literals].sort(byText) });
  if (types.size > 0) shapes.push({ type: types.size === 1 ? ([...types][0] ?? "") : [...types].sort() });
  const [only, ...others] = shapes.sort(byText);
  return only !== undefined && others.length === 0 ? only : { anyOf: shapes };
}

function isSimple(schema: JsonSchema): boolean {
  return Object.keys(schema).join() === "type" && schema.type !== "object";
}

function byText(a: unknown, b: unknown): number {
  return JSON.stringify(a) < JSON.stringify(b) ? -1 : 1;
}

function sorted<T>(record: Record<string, T>): Record<string, T> {
  return Object.fromEntries(Object.entries(record).sort(([a], [b]) => (a < b ? -1 : 1)));
}
