import { FleetError, type FleetErrorCode, isFleetError, quote, type Suggestion } from "../base/errors.js";
import { isObject, printable, redact, redactTokens } from "../base/values/text.js";
import { findKey, type Key, keyTree, nearestKeys } from "./keys.js";
import { replacementOf } from "./removed.js";
import type { Rule } from "./rules.js";

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
  const what = name === "" ? "The configuration" : name;
  const key = findKey(name.replace(/\[.*/, ""));
  // Whether the value breaks its key's own rule. If not, it does not fit another value.
  const isOfRule = key?.rule.allowed === allowed || key?.rule.allowed === undefined;
  const isInObject = name.includes("].");
  const problem =
    origin === undefined
      ? `${what} is not set`
      : value === undefined
        ? `${locate(what, origin)} is missing`
        : key?.rule.concealed === true && isOfRule
          ? `The value of ${locate(what, origin)} is not a reference to a secret, and is not shown, because it may be the secret`
          : `${locate(what, origin)} is ${describeValue(value, origin, { key, isOfRule })}`;
  const mayBeNull = isOfRule && key?.nullable === true && key.name === name;
  const orNull = mayBeNull && origin?.from !== "flag" ? orNullOf(name, origin) : "";
  const rule = origin?.from === "variable" ? asVariable(allowed) : allowed;
  return new FleetError(invalidCode([origin]), `${problem}. Allowed: ${rule}${orNull}`, {
    // A flag or a variable contains the whole list, so an example of a part of the list would mislead.
    suggestions: [
      correction(what, origin, isInObject && origin?.from !== "file" ? undefined : exampleFor(name, allowed)),
    ],
  });
}

/** The text after "Allowed:" for a variable, in which a list has another form than in a file. */
function asVariable(allowed: string): string {
  return allowed.replace(/such as (\[.*?\])/, (_, json: string) => {
    const items = JSON.parse(json) as unknown[];
    const isJson = items.some((item) => typeof item === "object");
    return isJson ? `as JSON, such as ${json}` : `separated by commas, such as ${items.join()}`;
  });
}

/** Describes a refused value: the value as it was given, and the reason if it is known. */
function describeValue(
  value: unknown,
  origin: Origin,
  { key, isOfRule }: { key: Key | undefined; isOfRule: boolean },
): string {
  const { fault } = key?.rule ?? {};
  const shown = show(value, origin, key?.rule ?? {});
  if (!isOfRule || (typeof value !== "number" && typeof value !== "string")) return shown;
  // Variables are always text.
  const otherKind = origin.from === "variable" ? "which is not a number" : "which is a text";
  const isText = key?.kind === "number" && typeof value === "string";
  const problem = fault?.(String(value)) ?? (isText ? otherKind : null);
  return problem === null ? shown : `${shown}, ${problem}`;
}

/** The meaning of null, by key. In the other keys that may be null, it means "no limit". */
const NULLS: Readonly<Record<string, string>> = {
  "auth.githubApp.appId": "none",
  "auth.githubApp.installationId": "none",
  "auth.githubApp.privateKey": "none",
  "auth.githubToken": "none",
  "identity.github.api": "no sign-on with GitHub",
  "host.advertise": "the address of serve.listen",
  "host.tls.ca": "the authorities that Node.js trusts",
  "host.tls.cert": "no certificate",
  "host.tls.key": "no certificate",
  "host.name": "its present name (a new host: the name of the machine)",
  provider: "GitHub's own models",
  "provider.apiKey": "a service that needs no key",
  "provider.baseUrl": 'the type "echo"',
  "runtime.path": "the program that the SDK brings",
  "serve.listen": "none, so that no client can connect",
  "serve.http": "no HTTP API",
  "serve.tls.cert": "plain TCP",
  "serve.tls.clientCa": "clients without certificates",
  "serve.tls.key": "plain TCP",
  "session.model": "a model that the runtime chooses",
  "session.ttl": "sessions that are never deleted",
  "session.tools": "all tools (none on a shared server)",
  "storage.shared": "each host's own disk",
  "storeOptions.key": "the key in the state folder",
  "storeOptions.password": "no password",
  user: "no default user",
};

/** The part of "Allowed:" about null. In a variable, null is a word. */
export function orNullOf(name: string, origin?: Origin): string {
  return `, or ${origin?.from === "variable" ? "the word null" : "null"} for ${NULLS[name] ?? "no limit"}`;
}

/**
 * Creates the error for values that are allowed alone but do not fit together. `names` are their keys. `allowed` is the
 * text after "Allowed:".
 */
export function conflict(
  names: string[],
  [problem, allowed]: readonly [problem: string, allowed: string],
  origins: ReadonlyMap<string, Origin>,
  advice: Suggestion = `Change ${names.join(" or ")}.`,
): FleetError {
  const given = names.map((name) => origins.get(name));
  const places = new Set(given.map(whence));
  const where =
    places.size === 1 ? [...places].join() : names.map((name, at) => `${name}: ${whence(given[at])}`).join("; ");
  return new FleetError(invalidCode(given), `${problem} (${where}). Allowed: ${allowed}`, {
    suggestions: [advice],
  });
}

/** The error for a key that does not exist. Does not show the value, which may be a secret. */
export function unknownKey(name: string, origin: Origin): FleetError {
  const replacement = replacementOf(name);
  if (replacement !== undefined) return removedKey(quote(name), replacement, origin);
  if (SECRET.test(name)) return secretInPlace(name, origin);
  const [nearest, ...others] = nearestKeys(name).map((key) => `"${key}"`);
  const at = origin.from === "file" ? ` in ${place(origin)}` : "";
  const suggestions: Suggestion[] =
    nearest === undefined
      ? [`Remove ${quote(name)}${at}, or correct its name.`, "copilotfleet config show # lists all keys"]
      : [`Did you mean ${[nearest, ...others].slice(0, 3).join(" or ")}?`];
  const known = nearest === undefined ? siblingsOf(name) : `; the nearest is ${nearest}`;
  const message = `${quote(name)} is not a key of the configuration (${whence(origin)})${known}`;
  return new FleetError("FLEET_CONFIG_INVALID", message, { suggestions });
}

/** The error for a key that no longer exists. */
export function removedKey(name: string, replacement: string, origin: Origin): FleetError {
  const advice: Suggestion = origin.from === "variable" ? `Unset ${origin.name}.` : `Remove ${name}.`;
  const message = `${name} is no longer a key of the configuration (${whence(origin)}). ${replacement}`;
  return new FleetError("FLEET_CONFIG_INVALID", message, { suggestions: [advice] });
}

/** The error for a key that does not exist, in an object in a list. `allowed` names the keys that exist. */
export function unknownItemKey(name: string, allowed: string, origin: Origin): FleetError {
  const message = `${quote(name)} is not a key of the configuration (${whence(origin)}). Allowed: ${allowed}`;
  return new FleetError("FLEET_CONFIG_INVALID", message, {
    suggestions: [`Remove ${quote(name)}, or correct its name.`],
  });
}

/** Lists the keys of the section of an unknown key. */
function siblingsOf(name: string): string {
  const section = name.slice(0, Math.max(0, name.lastIndexOf(".")));
  const { children } = (section === "" ? keyTree() : findKey(section)) ?? { children: new Map() };
  if (children.size === 0) return "";
  return `. Allowed ${section === "" ? "at the top level" : `in ${section}`}: ${[...children.keys()].join(", ")}`;
}

/** Matches the names of settings that would contain a secret. */
const SECRET = /(?:key|token|secret|password|bearer)$/i;

/** The error for a secret in the configuration, which may only contain references to secrets. */
function secretInPlace(name: string, origin: Origin): FleetError {
  const key = /^auth/i.test(name) ? "auth.githubToken" : "provider.apiKey";
  const message = `${quote(name)} is not a setting, and the configuration must not contain secrets (${whence(origin)})`;
  return new FleetError("FLEET_CONFIG_INVALID", message, {
    suggestions: [`Remove ${name}, and set ${key} to {"env": "NAME"} with the name of the variable that contains it.`],
  });
}

export function unusableFile(path: string, reason: string, suggestions: Suggestion[], cause?: unknown): FleetError {
  return new FleetError("FLEET_CONFIG_INVALID", `The configuration file ${printable(path)} ${reason}`, {
    suggestions,
    cause,
  });
}

function invalidCode(origins: (Origin | undefined)[]): FleetErrorCode {
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
  return name.includes(".") || name === "The configuration" ? name : `"${name}"`;
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
    // In `limits.groups` and `provider.prices`, the user chooses the keys. The example shows the whole object, so give
    // it the object's name.
    const key = isObject(example) ? name.replace(/(?<=^limits\.groups|^provider\.prices)\..*/, "") : name;
    const entry = example === undefined ? "" : `, for example ${quoteKey(key)}: ${json}`;
    return `Correct ${nameKey(name)} in ${place(origin)}${entry}.`;
  }
  if (origin.from === "option") return `Correct ${origin.name}${example === undefined ? "" : `, for example ${json}`}.`;
  const isListOfTexts = Array.isArray(example) && example.every((item) => typeof item === "string");
  const text = isListOfTexts ? example.join() : typeof example === "object" ? json : String(example);
  const variable = findKey(name.replace(/\[.*/, ""))?.variable;
  if (origin.from === "variable" && variable !== undefined && origin.name !== variable)
    return `Correct the content of the file that ${origin.name} names${example === undefined ? "" : `, for example ${text}`}.`;
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
  const [, object] = /such as (\{.*\})$/.exec(allowed) ?? [];
  if (object !== undefined) return JSON.parse(object);
  const [, least] = /^a whole number from (\d+)/.exec(allowed) ?? [];
  return least === undefined ? undefined : Math.max(Number(least), 1);
}

/**
 * Hides parts of a text value that may be secrets. Long parts stay visible only if values of the key are never secret.
 */
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
