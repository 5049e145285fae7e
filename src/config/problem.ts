import { FleetError, type FleetErrorCode, isFleetError, quote, type Suggestion } from "../errors.js";
import { findKey, nearestKeys } from "./keys.js";
import { printable, redact } from "./values/text.js";

/** The source of a value. `name` is a flag ("--ttl"), an option ("config.session.ttl"), a variable, or a path. */
export interface Origin {
  from: "flag" | "option" | "variable" | "file";
  name: string;
  /** The line in the file. */
  line?: number | undefined;
}

/** Receives a problem with the configuration. It throws the problem, unless the caller goes on without the value. */
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
  const what = name === "" ? "the configuration" : name;
  const rule = findKey(name.replace(/\[.*/, ""))?.rule ?? {};
  const subject =
    origin === undefined ? `${what} is not set` : `${locate(what, origin)} is ${show(value, origin, rule.concealed)}`;
  const better = typeof value === "number" || typeof value === "string" ? rule.withUnit?.(String(value)) : undefined;
  return new FleetError(invalidCode([origin], rule.flagCode), `${subject}. Allowed: ${allowed}`, {
    suggestions: [origin === undefined || better == null ? correction(what, origin) : replacement(better, origin)],
  });
}

/** Creates the error for values that are allowed alone but do not fit together. `names` are their keys. */
export function conflict(names: string[], message: string, origins: ReadonlyMap<string, Origin>): FleetError {
  const given = names.map((name) => origins.get(name));
  const code = names.map((name) => findKey(name)?.rule.flagCode).find((flagCode) => flagCode !== undefined);
  const where = names.map((name, at) => `${name}: ${whence(given[at])}`).join("; ");
  return new FleetError(invalidCode(given, code), `${message} (${where})`, {
    suggestions: [`Change ${names.join(" or ")}.`],
  });
}

/** The error for a key that does not exist. Does not show the value, which may be a secret. */
export function unknownKey(name: string, origin: Origin): FleetError {
  const [nearest, ...others] = nearestKeys(name).map((key) => `"${key}"`);
  const suggestions: Suggestion[] = [
    nearest === undefined
      ? "copilotfleet config show # lists all keys"
      : `Did you mean ${[nearest, ...others].slice(0, 3).join(" or ")}?`,
  ];
  if (/key|token|secret|password|bearer/i.test(name)) {
    suggestions.push(
      /^auth/.test(name)
        ? "Tokens are given by reference: auth.githubTokenEnv names the environment variable that holds one."
        : "Keys are given by reference: provider.apiKeyEnv names the environment variable that holds one.",
    );
  }
  const known = nearest === undefined ? "" : `; the nearest is ${nearest}`;
  const message = `${quote(name)} is not a key of the configuration (${whence(origin)})${known}`;
  return new FleetError("FLEET_CONFIG_KEY_UNKNOWN", message, { suggestions });
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
  if (origin.from !== "file") return `${origin.name} (${name})`;
  return `${name} in ${place(origin)}${origin.line === undefined ? "" : ","}`;
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

function correction(name: string, origin: Origin | undefined): Suggestion {
  if (origin === undefined) return `Set ${name}.`;
  if (origin.from === "file") return `Correct ${name} in ${place(origin)}.`;
  return origin.from === "variable" ? `Correct or unset ${origin.name}.` : `Correct ${origin.name}.`;
}

/** Tells the user to write `text` in place of the given value. */
function replacement(text: string, origin: Origin): Suggestion {
  const { from, name } = origin;
  if (from === "file") return `Write "${text}" in ${place(origin)}.`;
  if (from === "option") return `Write ${name}: "${text}".`;
  return from === "variable" ? `export ${name}=${text}` : `Write ${name} ${text}.`;
}

/** Shows a value in a message as it was given, without secrets. Shows only the kind of a list or object. */
function show(value: unknown, { from }: Origin, concealed = false): string {
  if (Array.isArray(value)) return "a list";
  if (typeof value === "object" && value !== null) return "an object";
  // Flags and variables are always text.
  if (typeof value !== "string") return from === "flag" || from === "variable" ? quote(value) : String(value);
  return concealed ? "a value that is not shown, because it may be a secret" : quote(redact(value));
}
