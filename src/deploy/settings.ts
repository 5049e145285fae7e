import { basename } from "node:path";
import { FleetError } from "../base/errors.js";
import type { NamedSource } from "../base/server.js";
import { holdsGitHubToken, redact } from "../base/values/text.js";
import { findKey } from "../config/keys.js";
import { type Layer, unflatten } from "../config/load/layers.js";
import type { Config } from "../config/schema.js";

/** A secret in a file of its own. Manifests contain its name and the name of its source, but never its value. */
export interface SecretFile {
  /** The name of the file, without a folder. It contains "{user}" if there is a file for each user. */
  name: string;
  /** The variable that contains the path of the file on a host. Null if the configuration contains the path. */
  variable: string | null;
  /** The path of the file on the machine that renders the manifests; null if the secret is in a variable there. */
  source: string | null;
  perUser: boolean;
}

/** The configuration in force, split into settings, secrets, and variables for servers. */
export interface Settings {
  /** The configuration of every host by dotted key. It contains the given values, unresolved, and no secrets. */
  values: ReadonlyMap<string, { value: unknown }>;
  secrets: SecretFile[];
  /** The names of the variables that servers get (`runtime.env`). Each may contain a secret, and each may be unset. */
  passedOn: string[];
}

export interface SettingsOptions {
  /** Keys or sections that the target environment sets, so the settings leave them out. */
  without: readonly string[];
  /** Keys to set in addition to the given ones. */
  with?: Readonly<Record<string, unknown>>;
  /** Whether the password of Redis comes from a secret {@link REDIS_PASSWORD}, which overrides the configuration. */
  secretPassword: boolean;
  /** Whether all hosts need the same key for the records in Redis. If so, this key comes from a secret. */
  secretStoreKey?: boolean;
  /** Whether to turn the files that the configuration names into secrets. */
  moveFiles: boolean;
}

const variableOf = (key: string) => findKey(key)?.variable ?? key;
/** The name of the secret with the store's key if the configuration does not refer to one. */
export const NEW_STORE_KEY = "COPILOTFLEET_STORE_KEY";
const STORE_KEY = "storeOptions.key";
const PASSWORD = "storeOptions.password";
export const REDIS_PASSWORD = "REDIS_PASSWORD";

/** Splits the configuration into the settings of every host, and the secrets. */
export function settingsOf(config: Config, given: Layer, options: SettingsOptions): Settings {
  const values = new Map<string, { value: unknown }>(given);
  // The default user belongs to the person who renders the manifests, not to the fleet.
  values.delete("user");
  const secrets: SecretFile[] = [];
  /** Moves the value of a key from the settings to a secret. */
  const conceal = (key: string) => {
    values.delete(key);
    const variable = variableOf(key);
    secrets.push({ name: variable, variable: `${variable}_FILE`, source: null, perUser: false });
  };
  const mayBeSecret = (text: string) => redact(text) !== text || holdsGitHubToken(text);
  /** Replaces a reference to a secret, except a command, with a file on each host. */
  const moveSecret = (key: string, source: NamedSource | null | undefined) => {
    if (source?.from === "command" && mayBeSecret(source.command)) throw secretInCommand(key);
    if (source?.from === "file") moveFile(key, source.path);
    if (source?.from !== "env") return;
    values.delete(key);
    const { name } = source;
    secrets.push({ name, variable: `${variableOf(key)}_FILE`, source: null, perUser: name.includes("{user}") });
  };
  const moveFile = (key: string, source: string | null) => {
    if (source === null || !options.moveFiles) return;
    values.delete(key);
    const variable = variableOf(key);
    const isReference = findKey(key)?.kind === "secret";
    secrets.push({ ...fileOf(source), variable: isReference ? `${variable}_FILE` : variable, source });
  };
  /** Turns the file with the keys of an identity provider into a secret. */
  const moveKeys = (issuer: { jwks?: unknown }, at: number): object => {
    const { jwks } = issuer;
    if (typeof jwks !== "string" || !isFile(jwks)) return issuer;
    const secret = { name: `jwks-${at + 1}.json`, perUser: false };
    secrets.push({ ...secret, variable: null, source: jwks });
    return { ...issuer, jwks: secretPath(secret) };
  };
  const { auth, provider, storeOptions, runtime } = config;
  const { key: storeKey, password } = storeOptions;
  if (options.secretPassword) moveSecret(PASSWORD, { from: "env", name: REDIS_PASSWORD });
  else moveSecret(PASSWORD, password);
  if (options.secretStoreKey === true) moveSecret(STORE_KEY, storeKey ?? { from: "env", name: NEW_STORE_KEY });
  if (provider !== null && provider.type !== "echo") {
    moveSecret("provider.apiKey", provider.apiKey);
    // Some services expect the key in the query of the URL, so the URL may be a secret.
    if (new URL(provider.baseUrl).search !== "") conceal("provider.baseUrl");
  }
  for (const [part, path] of Object.entries(config.serve.tls)) moveFile(`serve.tls.${part}`, path);
  for (const [part, path] of Object.entries(config.host.tls)) moveFile(`host.tls.${part}`, path);
  const issuers = values.get("identity.jwt")?.value;
  if (options.moveFiles && Array.isArray(issuers)) values.set("identity.jwt", { value: issuers.map(moveKeys) });
  if (runtime.args.some(mayBeSecret)) conceal("runtime.args");
  moveSecret("auth.githubToken", auth.githubToken);
  moveSecret("auth.githubApp.privateKey", auth.githubApp?.privateKey);
  for (const key of values.keys()) {
    if (options.without.some((left) => key === left || key.startsWith(`${left}.`))) values.delete(key);
  }
  for (const [key, value] of Object.entries(options.with ?? {})) values.set(key, { value });
  return { values, secrets, passedOn: runtime.env };
}

/** The secrets whose paths are in variables. */
export function inVariables(secrets: readonly SecretFile[]): (SecretFile & { variable: string })[] {
  return secrets.flatMap((secret) => (secret.variable === null ? [] : [{ ...secret, variable: secret.variable }]));
}

/** The path of a secret in a container. It contains "{user}" if there is a file for each user. */
export function secretPath({ name, perUser }: Pick<SecretFile, "name" | "perUser">): string {
  return `/run/secrets/copilotfleet${perUser ? "-users" : ""}/${name}`;
}

/** The content of a configuration file with these values. */
export function configText(values: Settings["values"]): string {
  return `${JSON.stringify(unflatten(values), null, 2)}\n`;
}

/** Whether the keys of an identity provider are in a file, and not at an address. */
export function isFile(jwks: string): boolean {
  return jwks.startsWith("/");
}

function secretInCommand(key: string): FleetError {
  const message = `The command of ${key} seems to contain a secret, which the manifests would show`;
  return new FleetError("FLEET_CONFIG_INVALID", message, {
    suggestions: ["Put the secret into a file that the command reads, or refer to the file in place of the command."],
  });
}

/** Turns "/keys/{user}/github" into "{user}-github", because a mounted Secret has no subfolders. */
function fileOf(path: string): Pick<SecretFile, "name" | "perUser"> {
  const perUser = path.includes("{user}");
  const parts = path.split("/");
  const name = perUser ? parts.slice(parts.findIndex((part) => part.includes("{user}"))).join("-") : basename(path);
  return { name, perUser };
}
