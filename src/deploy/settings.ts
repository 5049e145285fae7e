import { basename } from "node:path";
import { type Layer, unflatten } from "../config/layers.js";
import { readRedisUrl } from "../config/redis-url.js";
import type { Config } from "../config/schema.js";
import { holdsGitHubToken, redact } from "../config/text.js";

/** A variable whose value is a secret. Manifests name it, and where it comes from; they never hold it. */
export interface SecretVariable {
  name: string;
  /** Without it, nothing starts; what is only passed on to servers may be missing. */
  required: boolean;
}

/** Files that hold GitHub tokens, on the machine that this is rendered on. */
export interface TokenFiles {
  /** As it is configured: absolute, "{user}" may stand in it. */
  path: string;
  /** The file's name where it is mounted: one name, no folder, "{user}" may stand in it. */
  name: string;
  /** One file a user. */
  perUser: boolean;
}

/** The configuration in force, taken apart by where each part of it may stand. */
export interface Settings {
  /** The configuration file of every host: what was given, as it was written, and no secret. */
  file: Record<string, unknown>;
  secrets: SecretVariable[];
  /** `auth.githubTokenEnv` with "{user}" in it: nobody knows the names, so a whole Secret becomes variables. */
  userTokenVariables: string | null;
  tokenFiles: TokenFiles | null;
}

export interface SettingsOptions {
  /** Keys, or whole sections, that the place itself decides: they stand in no file. */
  without: readonly string[];
  /** Keys that are set beside what was given. */
  with?: Readonly<Record<string, unknown>>;
  /** The store's URL comes from a secret, whatever was given. */
  secretStore: boolean;
  /** Token files are mounted elsewhere, so their key is the renderer's to set. */
  moveTokenFiles: boolean;
}

export const STORE_VARIABLE = "COPILOTFLEET_STORE";

/** What of the configuration goes where. */
export function settingsOf(config: Config, given: Layer, options: SettingsOptions): Settings {
  const values = new Map([...given].map(([name, { value }]) => [name, value]));
  const secrets = new Map<string, SecretVariable>();
  const conceal = (key: string, variable: string) => {
    values.delete(key);
    secrets.set(variable, { name: variable, required: true });
  };
  const { auth, provider, store } = config;
  if (options.secretStore || (store.kind === "redis" && hasCredentials(store.url))) conceal("store", STORE_VARIABLE);
  if (provider !== null && provider.type !== "echo") {
    if (provider.apiKeyEnv !== null) secrets.set(provider.apiKeyEnv, { name: provider.apiKeyEnv, required: true });
    // Some services take their key in the query.
    if (new URL(provider.baseUrl).search !== "") conceal("provider.baseUrl", "COPILOTFLEET_PROVIDER_BASE_URL");
  }
  const command = auth.githubTokenCommand;
  if (command !== null && redact(command) !== command)
    conceal("auth.githubTokenCommand", "COPILOTFLEET_AUTH_GITHUB_TOKEN_COMMAND");
  if (config.runtime.args.some((argument) => holdsGitHubToken(argument) || redact(argument) !== argument))
    conceal("runtime.args", "COPILOTFLEET_RUNTIME_ARGS");
  const tokenEnv = auth.githubTokenEnv;
  const userTokenVariables = tokenEnv?.includes("{user}") ? tokenEnv : null;
  if (tokenEnv !== null && userTokenVariables === null) secrets.set(tokenEnv, { name: tokenEnv, required: true });
  for (const name of config.runtime.env) if (!secrets.has(name)) secrets.set(name, { name, required: false });
  if (options.moveTokenFiles) values.delete("auth.githubTokenFile");
  for (const key of values.keys()) {
    if (options.without.some((left) => key === left || key.startsWith(`${left}.`))) values.delete(key);
  }
  for (const [key, value] of Object.entries(options.with ?? {})) values.set(key, value);
  return {
    file: nested(values),
    secrets: [...secrets.values()],
    userTokenVariables,
    tokenFiles: auth.githubTokenFile === null ? null : tokenFiles(auth.githubTokenFile),
  };
}

/** The text of a configuration file. */
export function configText(file: Record<string, unknown>): string {
  return `${JSON.stringify(file, null, 2)}\n`;
}

function nested(values: ReadonlyMap<string, unknown>): Record<string, unknown> {
  return unflatten(new Map([...values].map(([name, value]) => [name, { value, origin: { from: "file", name: "" } }])));
}

function hasCredentials(url: string): boolean {
  const parts = readRedisUrl(url);
  return parts === null || parts.username !== null || parts.password !== null;
}

/** "/keys/{user}/github" becomes "{user}-github": what is mounted from a Secret has no folders. */
function tokenFiles(path: string): TokenFiles {
  const perUser = path.includes("{user}");
  const parts = path.split("/");
  const name = perUser ? parts.slice(parts.findIndex((part) => part.includes("{user}"))).join("-") : basename(path);
  return { path, name, perUser };
}
