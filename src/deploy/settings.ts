import { basename } from "node:path";
import { readRedisUrl } from "../base/values/network.js";
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
  /** Whether the store's URL comes from a secret, which overrides the configuration. */
  secretStore: boolean;
  /** Whether all hosts need the same key for the records in Redis. If so, this key comes from a secret. */
  secretStoreKey?: boolean;
  /** Whether to turn the files that the configuration names into secrets. */
  moveFiles: boolean;
}

const variableOf = (key: string) => findKey(key)?.variable ?? key;
/** The name of the secret with the store's key if the configuration names no file for it. */
export const NEW_STORE_KEY = "COPILOTFLEET_STORE_KEY";
const STORE_KEY = "storeOptions.keyFile";
export const STORE_VARIABLE = variableOf("store");

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
  /** Replaces a key that names a variable with the key that names a file. */
  const moveVariable = (key: string, name: string | null, fileKey: string) => {
    if (name === null) return;
    values.delete(key);
    secrets.push({ name, variable: variableOf(fileKey), source: null, perUser: name.includes("{user}") });
  };
  const moveFile = (key: string, source: string | null) => {
    if (source === null || !options.moveFiles) return;
    values.delete(key);
    secrets.push({ ...fileOf(source), variable: variableOf(key), source });
  };
  /** Turns the file with the keys of an identity provider into a secret. */
  const moveKeys = (issuer: { jwks?: unknown }, at: number): object => {
    const { jwks } = issuer;
    if (typeof jwks !== "string" || !isFile(jwks)) return issuer;
    const secret = { name: `jwks-${at + 1}.json`, perUser: false };
    secrets.push({ ...secret, variable: null, source: jwks });
    return { ...issuer, jwks: secretPath(secret) };
  };
  const { auth, provider, store, runtime } = config;
  const mayBeSecret = (text: string | null) => text !== null && (redact(text) !== text || holdsGitHubToken(text));
  if (options.secretStore || (store.kind === "redis" && hasCredentials(store.url))) conceal("store");
  if (options.secretStoreKey === true) {
    values.delete(STORE_KEY);
    const source = config.storeOptions.keyFile;
    const name = source === null ? NEW_STORE_KEY : basename(source);
    secrets.push({ name, variable: variableOf(STORE_KEY), source, perUser: false });
  }
  if (provider !== null && provider.type !== "echo") {
    moveVariable("provider.apiKeyEnv", provider.apiKeyEnv, "provider.apiKeyFile");
    moveFile("provider.apiKeyFile", provider.apiKeyFile);
    if (mayBeSecret(provider.apiKeyCommand)) conceal("provider.apiKeyCommand");
    // Some services expect the key in the query of the URL, so the URL may be a secret.
    if (new URL(provider.baseUrl).search !== "") conceal("provider.baseUrl");
  }
  for (const [part, path] of Object.entries(config.serve.tls)) moveFile(`serve.tls.${part}`, path);
  for (const [part, path] of Object.entries(config.host.tls)) moveFile(`host.tls.${part}`, path);
  const issuers = values.get("identity.jwt")?.value;
  if (options.moveFiles && Array.isArray(issuers)) values.set("identity.jwt", { value: issuers.map(moveKeys) });
  if (mayBeSecret(auth.githubTokenCommand)) conceal("auth.githubTokenCommand");
  if (runtime.args.some(mayBeSecret)) conceal("runtime.args");
  moveVariable("auth.githubTokenEnv", auth.githubTokenEnv, "auth.githubTokenFile");
  moveFile("auth.githubTokenFile", auth.githubTokenFile);
  moveFile("auth.githubApp.privateKeyFile", auth.githubApp?.privateKeyFile ?? null);
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

function hasCredentials(url: string): boolean {
  const parts = readRedisUrl(url);
  return parts === null || parts.username !== null || parts.password !== null;
}

/** Turns "/keys/{user}/github" into "{user}-github", because a mounted Secret has no subfolders. */
function fileOf(path: string): Pick<SecretFile, "name" | "perUser"> {
  const perUser = path.includes("{user}");
  const parts = path.split("/");
  const name = perUser ? parts.slice(parts.findIndex((part) => part.includes("{user}"))).join("-") : basename(path);
  return { name, perUser };
}
