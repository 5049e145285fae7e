import { FleetError } from "../../base/errors.js";
import { asVariable, type Key, keysBelow, keyTree, keyVariables, nearestVariable } from "../keys.js";
import { attempt, invalidValue, type Origin, removedKey, throwProblem } from "../problem.js";
import { replacementOf } from "../removed.js";
import { readValueFile } from "../secret.js";
import { absolute, type Given, type Layer } from "./layers.js";
import type { Environment } from "./paths.js";

const PREFIX = "COPILOTFLEET_";
/** The suffix of a variable that contains the path of a file. The file contains the value of a key. */
const FILE = "_FILE";

/** Variables of the fleet that are not configuration keys. */
const OTHER_VARIABLES = new Set([
  "COPILOTFLEET_ALLOW_NETWORK_FS",
  "COPILOTFLEET_ALLOW_UNSAFE_PARENTS",
  "COPILOTFLEET_HOME",
  "COPILOTFLEET_LAUNCH_ID",
  "COPILOTFLEET_LEASE_FENCE",
  "COPILOTFLEET_LEASE_SESSION",
  "COPILOTFLEET_LEASE_TOKEN",
]);

/**
 * Reads the configuration from the environment. Each key has one variable: `session.maxActive` is
 * `COPILOTFLEET_SESSION_MAX_ACTIVE`. Commas separate the items of a list of texts; a list of objects is JSON. "null"
 * means null if the key allows it. With `_FILE` at the end of its name, a variable names a file with the value; for a
 * key that takes a reference to a secret, it names the file with the secret.
 *
 * Unlike unknown keys in a file, other `COPILOTFLEET_*` variables are ignored on purpose. Kubernetes adds
 * `COPILOTFLEET_SERVICE_HOST`, `COPILOTFLEET_PORT` and more to every pod in the namespace of a Service named
 * "copilotfleet". If these were errors, no command would start in such a pod. `doctor` and `serve` report variables
 * that look like typing errors: {@link ignoredVariables}.
 */
export function environmentLayer(
  env: Environment,
  { folder, home }: { folder: string; home: string },
  report = throwProblem,
): Layer {
  const layer = new Map<string, Given>();
  const given = Object.keys(env).filter((name) => name.startsWith(PREFIX) && !OTHER_VARIABLES.has(name));
  if (given.length === 0) return layer;
  const known = new Set(keyVariables());
  for (const name of given) {
    const variable = name.replace(/_FILE$/, "");
    const replacement = known.has(variable) ? undefined : replacementOf(variable.slice(PREFIX.length), asVariable);
    if (replacement !== undefined) report(removedKey(name, replacement, { from: "variable", name }));
  }
  for (const key of keysBelow(keyTree())) {
    const name = env[key.variable] === undefined ? `${key.variable}${FILE}` : key.variable;
    const origin: Origin = { from: "variable", name };
    const text = attempt(() => textOf(key, env), report);
    if (text === undefined) continue;
    const value = key.kind === "secret" && name !== key.variable ? { file: text } : read(text, key);
    if (key.kind !== "section") layer.set(key.name, { value: absolute(key, value, { folder, home }), origin });
    else if (key.nullable && text === "null") layer.set(key.name, { value: null, origin });
    else if (key.nullable)
      report(invalidValue(key.name, text, `"null"; ${key.variable}_TYPE and so on set its parts`, origin));
  }
  // If COPILOTFLEET_PROVIDER=null is set together with the variable of a key in this section, such as
  // COPILOTFLEET_PROVIDER_TYPE, the variable of the key wins.
  if ([...layer.keys()].some((name) => name.startsWith("provider."))) layer.delete("provider");
  return layer;
}

/**
 * The value of a key as text, from its variable or from the file that its `_FILE` variable names; undefined if neither
 * is set. For a reference to a secret, the path of the file. Throws if both are set.
 */
function textOf({ variable, kind }: Key, env: Environment): string | undefined {
  const file = variable + FILE;
  const path = env[file];
  if (path === undefined || path === "") return env[variable];
  if (env[variable] === undefined) return kind === "secret" ? path : readValueFile(path, file);
  throw new FleetError("FLEET_CONFIG_INVALID", `${variable} and ${file} are both set. Allowed: one of the two`, {
    suggestions: [`Unset ${variable} or ${file}.`],
  });
}

/**
 * Removes the fleet's variables from an environment, except the settings for the runtime and the ports, which any fleet
 * on this machine may need.
 */
export function withoutSettings(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const kept = /^COPILOTFLEET_(RUNTIME|PORTS)_/;
  return Object.fromEntries(Object.entries(env).filter(([name]) => !name.startsWith(PREFIX) || kept.test(name)));
}

/** Text that is not a number or boolean stays text, so that the schema refuses it with its own message. */
function read(text: string, key: Key): unknown {
  if (text === "null" && key.nullable) return null;
  if (key.kind === "number") return readNumber(text) ?? text;
  if (key.kind === "boolean" && (text === "true" || text === "false")) return text === "true";
  if (key.kind === "list" && text.trim() === "") return [];
  if (key.rule.json === true) return readJson(text);
  if (key.kind === "list") return text.split(",").map((item) => item.trim());
  return text;
}

/** Text that is not JSON stays text, so that the schema refuses it. */
function readJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

// `Number(text)` would also accept "1e4", "0x10", " 4321" and "".
const DECIMAL = /^-?(?:0|[1-9]\d{0,15})(?:\.\d{1,15})?$/;

/** Accepts only plain decimal digits: no exponent, no blanks, no leading zeros. */
export function readNumber(text: string): number | null {
  return DECIMAL.test(text) ? Number(text) : null;
}

/**
 * Variables that Kubernetes derives from a Service's name:
 * https://kubernetes.io/docs/concepts/services-networking/service/.
 */
const FROM_KUBERNETES = /_SERVICE_(?:HOST|PORT(?:_\w+)?)$|_PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?$/;

/** Describes the `COPILOTFLEET_*` variables that have no meaning. Null if there are none. */
export function ignoredVariables(env: Environment): string | null {
  const unknown = unknownVariables(env).map(({ name, nearest }) =>
    nearest === null ? name : `${name} (did you mean ${nearest}?)`,
  );
  return unknown.length === 0 ? null : `unknown variables are ignored: ${unknown.join(", ")}`;
}

/** Lists the `COPILOTFLEET_*` variables that have no meaning, each with the variable that was probably meant. */
export function unknownVariables(env: Environment): { name: string; nearest: string | null }[] {
  const known = new Set(keyVariables());
  return Object.keys(env)
    .filter((name) => name.startsWith(PREFIX) && !known.has(name) && !known.has(name.replace(/_FILE$/, "")))
    .filter((name) => !OTHER_VARIABLES.has(name) && !FROM_KUBERNETES.test(name))
    .sort()
    .map((name) => ({ name, nearest: nearestVariable(name) }));
}
