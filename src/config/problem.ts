import { FleetError, type FleetErrorCode, isFleetError, quote, type Suggestion } from "../base/errors.js";
import { printable, redact, redactTokens } from "../base/values/text.js";
import { type Key, keyAt, nearestKeys } from "./keys.js";
import { replacementOf } from "./removed.js";

/** The source of a value. `name` is a flag ("--ttl"), an option ("config.session.ttl"), a variable, or a path. */
export interface Origin {
  from: "flag" | "option" | "variable" | "file";
  name: string;
  /** The line in the file. */
  line?: number | undefined;
}

/** Receives a problem with the configuration. Throws it, or returns if the caller continues without the value. */
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
  const key = keyAt(name);
  const isPart = key.name !== name;
  // Whether the value breaks its key's own rule. If not, it does not fit another value.
  const isOfRule = key.rule.allowed === allowed;
  const orNull = isOfRule && !isPart && key.nullable && origin?.from !== "flag" ? orNullOf(key, origin) : "";
  const rule = origin?.from === "variable" ? asVariable(allowed) : allowed;
  const problem = problemOf(name, value, origin, isOfRule ? key.rule : {});
  return new FleetError(codeOf([origin]), `${problem}. Allowed: ${rule}${orNull}`, {
    suggestions: [correction(name, origin, isOfRule || isPart ? key : { ...key, example: undefined })],
  });
}

function problemOf(name: string, value: unknown, origin: Origin | undefined, rule: Partial<Key["rule"]>): string {
  if (origin === undefined) return `${name} is not set`;
  if (value === undefined) return `${locate(name, origin)} is missing`;
  if (rule.concealed === true)
    return `The value of ${locate(name, origin)} is not a reference to a secret, and is not shown, because it may be the secret`;
  const isScalar = typeof value === "number" || typeof value === "string";
  const fault = isScalar ? (rule.fault?.(String(value)) ?? null) : null;
  return `${locate(name, origin)} is ${show(value, origin, keyAt(name))}${fault === null ? "" : `, ${fault}`}`;
}

/** The text after "Allowed:" for a variable, in which a list has another form than in a file. */
function asVariable(allowed: string): string {
  return allowed.replace(/such as (\[.*?\])/, (_, json: string) => {
    const items = JSON.parse(json) as unknown[];
    const isJson = items.some((item) => typeof item === "object");
    return isJson ? `as JSON, such as ${json}` : `separated by commas, such as ${items.join()}`;
  });
}

/** The part of "Allowed:" about null. In a variable, null is a word. */
export function orNullOf({ rule }: Key, origin?: Origin): string {
  return `, or ${origin?.from === "variable" ? "the word null" : "null"} for ${rule.nothing}`;
}

/**
 * Creates the error for values that are allowed alone but do not fit together. `names` are their keys. `allowed` is the
 * text after "Allowed:".
 */
export function conflict(
  names: readonly string[],
  problem: string,
  allowed: string,
  origins: ReadonlyMap<string, { origin: Origin }>,
): FleetError {
  const given = names.map((name) => origins.get(name)?.origin);
  const places = new Set(given.map(whence));
  const where =
    places.size === 1 ? [...places].join() : names.map((name, at) => `${name}: ${whence(given[at])}`).join("; ");
  return new FleetError(codeOf(given), `${problem} (${where}). Allowed: ${allowed}`, {
    suggestions: [`Change ${names.join(" or ")}.`],
  });
}

/** Matches the names of settings that would contain a secret. */
const SECRET = /(?:key|token|secret|password|bearer)$/i;

/**
 * The error for a key that does not exist. Does not show the value, which may be a secret.
 *
 * @param allowed the keys that exist, if the key is in an object in the value of another key
 */
export function unknownKey(name: string, origin: Origin, allowed?: string): FleetError {
  const replacement = replacementOf(name);
  if (replacement !== undefined) return removedKey(quote(name), replacement, origin);
  const unknown = `${quote(name)} is not a key of the configuration (${whence(origin)})`;
  const refuse = (message: string, ...suggestions: Suggestion[]) =>
    new FleetError("FLEET_CONFIG_INVALID", message, { suggestions });
  const at = origin.from === "file" ? ` in ${place(origin)}` : "";
  const remove: Suggestion = `Remove ${quote(name)}${at}, or correct its name.`;
  if (allowed !== undefined) return refuse(`${unknown}. Allowed: ${allowed}`, remove);
  if (SECRET.test(name)) {
    const key = /^auth/i.test(name) ? "auth.githubToken" : "provider.apiKey";
    return refuse(
      `${quote(name)} is not a setting, and the configuration must not contain secrets (${whence(origin)})`,
      `Remove ${name}, and set ${key} to {"env": "NAME"} with the name of the variable that contains it.`,
    );
  }
  const near = nearestKeys(name).map((key) => `"${key}"`);
  if (near.length > 0)
    return refuse(`${unknown}; the nearest is ${near[0]}`, `Did you mean ${near.slice(0, 3).join(" or ")}?`);
  const section = keyAt(name);
  const where = section.name === "" ? "at the top level" : `in ${section.name}`;
  const known = section.children.size === 0 ? "" : `. Allowed ${where}: ${[...section.children.keys()].join(", ")}`;
  return refuse(`${unknown}${known}`, remove, "copilotfleet config show # lists all keys");
}

/** The error for a key that no longer exists. */
export function removedKey(name: string, replacement: string, origin: Origin): FleetError {
  const advice: Suggestion = origin.from === "variable" ? `Unset ${origin.name}.` : `Remove ${name}.`;
  const message = `${name} is no longer a key of the configuration (${whence(origin)}). ${replacement}`;
  return new FleetError("FLEET_CONFIG_INVALID", message, { suggestions: [advice] });
}

export function unusableFile(path: string, reason: string, suggestions: Suggestion[], cause?: unknown): FleetError {
  return new FleetError("FLEET_CONFIG_INVALID", `The configuration file ${printable(path)} ${reason}`, {
    suggestions,
    cause,
  });
}

function codeOf(origins: (Origin | undefined)[]): FleetErrorCode {
  const isUsage = origins.some((origin) => origin?.from === "flag" || origin?.from === "option");
  return isUsage ? "FLEET_USAGE_INVALID" : "FLEET_CONFIG_INVALID";
}

function locate(name: string, origin: Origin): string {
  if (origin.from === "option") return name.includes("].") ? `config.${name}` : origin.name;
  if (origin.from === "flag") return origin.name;
  if (origin.from === "variable") {
    const [, key, index] = /^(.*)\[(\d+)\]$/.exec(name) ?? [];
    return index === undefined ? `${origin.name} (${name})` : `Item ${Number(index) + 1} of ${origin.name} (${key})`;
  }
  return `${nameKey(name)} in ${place(origin)}${origin.line === undefined ? "" : ","}`;
}

/** The name of a key in a sentence. Quotes a name such as "user" that could be a word of the sentence. */
function nameKey(name: string): string {
  return name === "" ? "The configuration" : name.includes(".") ? name : `"${name}"`;
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

/** The next step for a value that is not allowed, with an allowed value for the whole key if one is known. */
function correction(name: string, origin: Origin | undefined, { example, ...key }: Key): Suggestion {
  if (origin === undefined) return `Set ${name}.`;
  const suchAs = (text: string) => (example === undefined ? ("." as const) : (`, for example ${text}.` as const));
  const json = JSON.stringify(example);
  const isListOfTexts = Array.isArray(example) && example.every((item) => typeof item === "string");
  const text = isListOfTexts ? example.join() : typeof example === "string" ? example : json;
  if (origin.from === "option") return `Correct ${origin.name}${suchAs(json)}`;
  if (origin.from === "flag") return `Correct ${origin.name}${suchAs(`${origin.name} ${text}`)}`;
  if (origin.from === "variable")
    return origin.name === key.variable
      ? `Correct or unset ${origin.name}${suchAs(`${origin.name}=${text}`)}`
      : `Correct the content of the file that ${origin.name} names${suchAs(text)}`;
  if (name === "") return 'Put the settings between { and }, for example {"isolation": "per-user"}.';
  return `Correct ${nameKey(name)} in ${place(origin)}${suchAs(`"${key.name.split(".").at(-1)}": ${json}`)}`;
}

/**
 * Hides parts of a text value that may be secrets. Long parts stay visible only if values of the key are never secret.
 */
export function withoutSecret(text: string, { rule }: Key): string {
  return rule.harmless === true ? redactTokens(text) : redact(text);
}

/** Shows a value in a message as it was given, without secrets. Shows only the kind of a list or object. */
function show(value: unknown, { from }: Origin, key: Key): string {
  if (Array.isArray(value)) return "a list";
  if (typeof value === "object" && value !== null) return "an object";
  // Flags and variables are always text.
  if (typeof value !== "string") return from === "flag" || from === "variable" ? quote(value) : String(value);
  return quote(withoutSecret(value, key));
}
