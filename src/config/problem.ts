import { FleetError, type FleetErrorCode, isFleetError, quote, type Suggestion } from "../errors.js";
import { findKey, type Key, nearestKeys } from "./keys.js";
import type { Rule } from "./rules.js";
import { printable, redact, redactTokens } from "./values/text.js";

/** The source of a value. `name` is a flag ("--ttl"), an option ("config.session.ttl"), a variable, or a path. */
export interface Origin {
  from: "flag" | "option" | "variable" | "file";
  name: string;
  /** The line in the file. */
  line?: number | undefined;
}

/** Receives a problem with the configuration. Throws it, or returns if the caller goes on without the value. */
export type Report = (problem: FleetError) => void;

export const throwProblem: Report = (problem) => {
  throw problem;
};

/** Returns the result of `run`. If `run` throws a problem, reports it and returns undefined. */
export function attempt<T>(run: () => T, report: Report): T | undefined {
  try {
    return run();
  } catch (error) {
    if (!isFleetError(error)) throw error;
    report(error);
    return undefined;
  }
}

/**
 * Creates the error for a value that is not allowed. A value from a flag or an option is a usage error.
 *
 * @param name the dotted key, with an index ("runtime.args[0]") for an item of a list
 * @param allowed the text after "Allowed:"
 */
export function invalidValue(name: string, value: unknown, allowed: string, origin: Origin | undefined): FleetError {
  const what = name === "" ? "The configuration" : name;
  const key = findKey(name.replace(/\[.*/, ""));
  // Otherwise, the value follows the rule of the key, but fails a check together with other values.
  const isOfRule = key?.rule.allowed === allowed || key?.rule.allowed === undefined;
  const problem =
    origin === undefined
      ? `${what} is not set`
      : `${locate(what, origin)} is ${describeValue(value, origin, { key, isOfRule })}`;
  const mayBeNull = isOfRule && key?.nullable === true && key.name === name;
  const orNull = mayBeNull && origin?.from !== "flag" ? nullOf(name) : "";
  return new FleetError(invalidCode([origin], key?.rule.flagCode), `${problem}. Allowed: ${allowed}${orNull}`, {
    suggestions: [correction(what, origin, exampleFor(name, allowed))],
  });
}

/** A value as it was given, and why it is refused. */
function describeValue(
  value: unknown,
  origin: Origin,
  { key, isOfRule }: { key: Key | undefined; isOfRule: boolean },
): string {
  const { concealed, fault } = key?.rule ?? {};
  if (concealed && typeof value === "string")
    return "not the name of a variable. Its value is not shown, because it may be a secret";
  const shown = show(value, origin, key?.rule ?? {});
  if (!isOfRule || (typeof value !== "number" && typeof value !== "string")) return shown;
  // Variables are always text.
  const otherKind = origin.from === "variable" ? "which is not a number" : "which is a text";
  const isText = key?.kind === "number" && typeof value === "string";
  const problem = fault?.(String(value)) ?? (isText ? otherKind : null);
  return problem === null ? shown : `${shown}, ${problem}`;
}

/** The meaning of null for a key that may be null. */
function nullOf(name: string): string {
  if (name === "serve.listen") return ", or null for no front door";
  return /^(?:limits|recycle)\.|^pool\.idleTimeout$/.test(name) ? ", or null for no limit" : ", or null";
}

/** Creates the error for values that are allowed alone but do not fit together. `names` are their keys. */
export function conflict(
  names: string[],
  message: string,
  origins: ReadonlyMap<string, Origin>,
  advice: Suggestion = `Change ${names.join(" or ")}.`,
): FleetError {
  const given = names.map((name) => origins.get(name));
  const code = names.map((name) => findKey(name)?.rule.flagCode).find((flagCode) => flagCode !== undefined);
  const places = new Set(given.map(whence));
  const where =
    places.size === 1 ? [...places].join() : names.map((name, at) => `${name}: ${whence(given[at])}`).join("; ");
  return new FleetError(invalidCode(given, code), `${message} (${where})`, {
    suggestions: [advice],
  });
}

/** The error for a key that does not exist. Does not show the value, which may be a secret. */
export function unknownKey(name: string, origin: Origin): FleetError {
  if (SECRET.test(name)) return secretInPlace(name, origin);
  const [nearest, ...others] = nearestKeys(name).map((key) => `"${key}"`);
  const suggestions: Suggestion[] = [
    nearest === undefined
      ? "copilotfleet config show # lists all keys"
      : `Did you mean ${[nearest, ...others].slice(0, 3).join(" or ")}?`,
  ];
  const known = nearest === undefined ? siblingsOf(name) : `; the nearest is ${nearest}`;
  const message = `${quote(name)} is not a key of the configuration (${whence(origin)})${known}`;
  return new FleetError("FLEET_CONFIG_KEY_UNKNOWN", message, { suggestions });
}

/** Lists the keys of the section of an unknown key, unless there are too many to read. */
function siblingsOf(name: string): string {
  const section = name.slice(0, Math.max(0, name.lastIndexOf(".")));
  const keys = [...(findKey(section)?.children.keys() ?? [])];
  return keys.length === 0 || keys.length > MOST_LISTED ? "" : `. Allowed in ${section}: ${keys.join(", ")}`;
}

const MOST_LISTED = 10;

/** The name of a setting that would contain a secret. */
const SECRET = /(?:key|token|secret|password|bearer)$/i;

/** The error for a secret in the configuration, which may only name the variable that contains the secret. */
function secretInPlace(name: string, origin: Origin): FleetError {
  const isToken = /^auth|token$/i.test(name);
  const [key, content] = isToken ? ["auth.githubTokenEnv", "the token"] : ["provider.apiKeyEnv", "the API key"];
  const message = `${quote(name)} is not a setting, and the configuration must not contain secrets (${whence(origin)})`;
  return new FleetError("FLEET_CONFIG_KEY_UNKNOWN", message, {
    suggestions: [`Remove ${name}, and set ${key} to the name of the environment variable that contains ${content}.`],
  });
}

export function unusableFile(path: string, reason: string, suggestions: Suggestion[], cause?: unknown): FleetError {
  return new FleetError("FLEET_CONFIG_INVALID", `The configuration file ${printable(path)} ${reason}`, {
    suggestions,
    cause,
  });
}

function invalidCode(
  origins: (Origin | undefined)[],
  flagCode: FleetErrorCode = "FLEET_USAGE_INVALID",
): FleetErrorCode {
  return origins.some((origin) => origin?.from === "flag" || origin?.from === "option")
    ? flagCode
    : "FLEET_CONFIG_INVALID";
}

function locate(name: string, origin: Origin): string {
  if (origin.from === "option") return origin.name;
  if (origin.from === "flag") return origin.name;
  if (origin.from === "variable") return `${origin.name} (${name})`;
  return `${name.includes(".") || name === "The configuration" ? name : `"${name}"`} in ${place(origin)}${origin.line === undefined ? "" : ","}`;
}

/** A path, with the line if it is known. */
function place({ name, line }: Origin): string {
  return line === undefined ? printable(name) : `${printable(name)}, line ${line}`;
}

/** Describes the source of a value. Undefined means that nobody gave a value, so the default applies. */
function whence(origin: Origin | undefined): string {
  if (origin === undefined) return "the default";
  if (origin.from === "file") return `in ${place(origin)}`;
  return `the ${origin.from} ${origin.name}`;
}

/** The next step for a value that is not allowed. `example` is an allowed value, or undefined if none is known. */
function correction(name: string, origin: Origin | undefined, example: unknown): Suggestion {
  if (origin === undefined) return `Set ${name}.`;
  const json = JSON.stringify(example);
  if (origin.from === "file" && name === "The configuration")
    return 'Put the settings between { and }, for example {"isolation": "per-user"}.';
  if (origin.from === "file") {
    const entry = example === undefined ? "" : `, for example ${quoteKey(name)}: ${json}`;
    return `Correct ${name} in ${place(origin)}${entry}.`;
  }
  if (origin.from === "option") return `Correct ${origin.name}${example === undefined ? "" : `, for example ${json}`}.`;
  const text = Array.isArray(example) ? example.join() : String(example);
  const value = example === undefined ? "" : `, for example ${origin.name}${origin.from === "flag" ? " " : "="}${text}`;
  return origin.from === "variable" ? `Correct or unset ${origin.name}${value}.` : `Correct ${origin.name}${value}.`;
}

/** The last part of a dotted name, in quotes as in a JSON file. */
function quoteKey(name: string): string {
  return JSON.stringify(name.slice(name.lastIndexOf(".") + 1).replace(/\[.*/, ""));
}

/** A value that the key allows: its default, or else one that the text after "Allowed:" names. */
function exampleFor(name: string, allowed: string): unknown {
  const key = findKey(name.replace(/\[.*/, ""));
  const initial = key?.rule.example ?? key?.initial;
  if (typeof initial === "string" || typeof initial === "number" || typeof initial === "boolean") return initial;
  const [, json] = /(?:such as |^)(\[.*?\]|"[^"]*"|\d+\.\d+)/.exec(allowed) ?? [];
  if (json !== undefined) return JSON.parse(json);
  const [, least] = /^a whole number from (\d+)/.exec(allowed) ?? [];
  return least === undefined ? undefined : Math.max(Number(least), 1);
}

/** A text value of a key without what may be a secret. Long values stay if values of the key are never secret. */
export function withoutSecret(text: string, { harmless = false }: Pick<Rule, "harmless">): string {
  return harmless ? redactTokens(text) : redact(text);
}

/** Shows a value in a message as it was given, without secrets. Shows only the kind of a list or object. */
function show(value: unknown, { from }: Origin, rule: Rule): string {
  if (Array.isArray(value)) return "a list";
  if (typeof value === "object" && value !== null) return "an object";
  // Flags and variables are always text.
  if (typeof value !== "string") return from === "flag" || from === "variable" ? quote(value) : String(value);
  return quote(withoutSecret(value, rule));
}
