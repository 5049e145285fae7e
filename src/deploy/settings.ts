import { basename } from "node:path";
import { type Layer, unflatten } from "../config/load/layers.js";
import type { Config } from "../config/schema.js";
import { readRedisUrl } from "../config/values/redis-url.js";
import { holdsGitHubToken, redact } from "../config/values/text.js";

/** A variable whose value is a secret. Manifests contain its name and the name of its source, but never its value. */
export interface SecretVariable {
  name: string;
  /** Whether the fleet cannot start without it. A variable that is only passed on to servers is optional. */
  required: boolean;
}

/** The files with GitHub tokens on the machine that renders the manifests. */
export interface TokenFiles {
  /** The configured path. It is absolute and may contain "{user}". */
  path: string;
  /** The file's name in the mounted folder: a single name without a folder. It may contain "{user}". */
  name: string;
  perUser: boolean;
}

/** The configuration in force, split by the places where its parts belong. */
export interface Settings {
  /** The configuration file of every host. It contains the given values, unresolved, and no secrets. */
  file: Record<string, unknown>;
  secrets: SecretVariable[];
  /**
   * `auth.githubTokenEnv` if it contains "{user}", so that each user's token has its own variable; null otherwise. In
   * Kubernetes, these variables are the keys of one Secret.
   */
  userTokenVariables: string | null;
  tokenFiles: TokenFiles | null;
}

export interface SettingsOptions {
  /** Keys or sections that the target environment sets, so the file leaves them out. */
  without: readonly string[];
  /** Keys to set in addition to the given ones. */
  with?: Readonly<Record<string, unknown>>;
  /** Whether the store's URL comes from a secret, which overrides the configuration. */
  secretStore: boolean;
  /** Whether token files are mounted at another path. The renderer then sets their key itself. */
  moveTokenFiles: boolean;
}

export const STORE_VARIABLE = "COPILOTFLEET_STORE";

/** Splits the configuration into the file, the secrets and the token files. */
export function settingsOf(config: Config, given: Layer, options: SettingsOptions): Settings {
  const values = new Map<string, { value: unknown }>(given);
  // The default user belongs to the person who renders the manifests, not to the fleet.
  values.delete("user");
  const secrets = new Map<string, SecretVariable>();
  const conceal = (key: string, variable: string) => {
    values.delete(key);
    secrets.set(variable, { name: variable, required: true });
  };
  const { auth, provider, store } = config;
  if (options.secretStore || (store.kind === "redis" && hasCredentials(store.url))) conceal("store", STORE_VARIABLE);
  if (provider !== null && provider.type !== "echo") {
    if (provider.apiKeyEnv !== null) secrets.set(provider.apiKeyEnv, { name: provider.apiKeyEnv, required: true });
    if (provider.apiKeyCommand !== null && redact(provider.apiKeyCommand) !== provider.apiKeyCommand)
      conceal("provider.apiKeyCommand", "COPILOTFLEET_PROVIDER_API_KEY_COMMAND");
    // Some services expect the key in the query of the URL.
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
  for (const [key, value] of Object.entries(options.with ?? {})) values.set(key, { value });
  return {
    file: unflatten(values),
    secrets: [...secrets.values()],
    userTokenVariables,
    tokenFiles: auth.githubTokenFile === null ? null : tokenFiles(auth.githubTokenFile),
  };
}

export function configText(file: Record<string, unknown>): string {
  return `${JSON.stringify(file, null, 2)}\n`;
}

function hasCredentials(url: string): boolean {
  const parts = readRedisUrl(url);
  return parts === null || parts.username !== null || parts.password !== null;
}

/** Turns "/keys/{user}/github" into "{user}-github", because a mounted Secret has no subfolders. */
function tokenFiles(path: string): TokenFiles {
  const perUser = path.includes("{user}");
  const parts = path.split("/");
  const name = perUser ? parts.slice(parts.findIndex((part) => part.includes("{user}"))).join("-") : basename(path);
  return { path, name, perUser };
}
