import { type Key, keysBelow, keyTree, nearestVariable } from "./keys.js";
import { absolute, type Given, type Layer } from "./layers.js";
import { readNumber } from "./number.js";
import type { Environment } from "./paths.js";
import { invalidValue, type Origin } from "./problem.js";

const PREFIX = "COPILOTFLEET_";

/** Variables of the fleet that are no keys: its state folder, what that may be on, and what it tells the processes that it starts. */
const OTHER_VARIABLES = new Set([
  "COPILOTFLEET_ALLOW_NETWORK_FS",
  "COPILOTFLEET_ALLOW_UNSAFE_PARENTS",
  "COPILOTFLEET_HOME",
  "COPILOTFLEET_LAUNCH_ID",
  "COPILOTFLEET_LEASE_FENCE",
  "COPILOTFLEET_LEASE_SESSION",
  "COPILOTFLEET_LEASE_TOKEN",
  "COPILOTFLEET_USER",
]);

/**
 * What the environment says. Each key has one variable: `session.maxActive` is `COPILOTFLEET_SESSION_MAX_ACTIVE`.
 * A list is separated by commas, and "null" is null where a key allows it.
 *
 * Other `COPILOTFLEET_*` variables are ignored on purpose, unlike unknown keys in a file: Kubernetes puts
 * `COPILOTFLEET_SERVICE_HOST`, `COPILOTFLEET_PORT` and more into every pod beside a Service named "copilotfleet", and
 * no command could start there. `doctor` and `serve` name those that look like a slip: {@link ignoredVariables}.
 */
export function environmentLayer(env: Environment, folder: string, home: string): Layer {
  const layer = new Map<string, Given>();
  if (!Object.keys(env).some((name) => name.startsWith(PREFIX) && !OTHER_VARIABLES.has(name))) return layer;
  for (const key of keysBelow(keyTree())) {
    const text = env[key.variable];
    if (text === undefined) continue;
    const origin: Origin = { from: "variable", name: key.variable };
    if (key.kind !== "section")
      layer.set(key.name, { value: absolute(key, read(text, key), { folder, home }), origin });
    else if (key.nullable && text === "null") layer.set(key.name, { value: null, origin });
    else if (key.nullable)
      throw invalidValue(key.name, text, `"null"; ${key.variable}_TYPE and so on set its parts`, origin);
  }
  // "COPILOTFLEET_PROVIDER=null" beside one of the parts' variables: the parts say more.
  if ([...layer.keys()].some((name) => name.startsWith("provider."))) layer.delete("provider");
  return layer;
}

/** A text that is no number or boolean stays one, for the schema to refuse in its own words. */
function read(text: string, key: Key): unknown {
  if (text === "null" && key.nullable) return null;
  if (key.kind === "number") return readNumber(text) ?? text;
  if (key.kind === "boolean" && (text === "true" || text === "false")) return text === "true";
  if (key.kind === "list") return text.trim() === "" ? [] : text.split(",").map((item) => item.trim());
  return text;
}

/** What Kubernetes derives from a Service's name (https://kubernetes.io/docs/concepts/services-networking/service/). */
const FROM_KUBERNETES = /_SERVICE_(?:HOST|PORT(?:_\w+)?)$|_PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?$/;

/** Says which `COPILOTFLEET_*` variables mean nothing, each with the known one nearest to it; null if there is none. */
export function ignoredVariables(env: Environment): string | null {
  const unknown = unknownVariables(env).map(({ name, nearest }) => `${name} (nearest known: ${nearest})`);
  return unknown.length === 0 ? null : `ignored, since they set nothing: ${unknown.join(", ")}`;
}

/** `COPILOTFLEET_*` variables that mean nothing, each with the known one nearest to it. */
export function unknownVariables(env: Environment): { name: string; nearest: string }[] {
  const known = new Set([...keysBelow(keyTree())].filter(isVariable).map((key) => key.variable));
  return Object.keys(env)
    .filter((name) => name.startsWith(PREFIX) && !known.has(name))
    .filter((name) => !OTHER_VARIABLES.has(name) && !FROM_KUBERNETES.test(name))
    .sort()
    .map((name) => ({ name, nearest: nearestVariable(name) }));
}

/** A section has no variable of its own, save one that can be null. */
function isVariable(key: Key): boolean {
  return key.kind !== "section" || key.nullable;
}
