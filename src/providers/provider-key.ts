import type { ProviderConfig } from "@github/copilot-sdk";
import { FleetError, quote } from "../base/errors.js";
import type { TokenSource } from "../base/server.js";
import { redact } from "../base/values/text.js";
import type { Environment } from "../config/load/paths.js";
import type { RemoteProvider } from "../config/schema.js";
import { KEY, readSecretFile, secretFault } from "./secret.js";
import { readTokenCommand } from "./token-command.js";

export type KeySource = Exclude<TokenSource, { from: "caller" | "app" }>;

/** How long a key is used before its source is read again, in milliseconds. */
const FRESH_MS = { env: 0, file: 1_000, command: 5 * 60_000 };
/** If the service keeps refusing keys, the key is read again at most once in this time, in milliseconds. */
const REFUSAL_PAUSE_MS = 5_000;

/** The configured source of the model service's key. Null if the service needs none. */
export function keySourceOf({
  apiKeyEnv,
  apiKeyFile,
  apiKeyCommand,
}: Pick<RemoteProvider, "apiKeyEnv" | "apiKeyFile" | "apiKeyCommand">): KeySource | null {
  if (apiKeyEnv !== null) return { from: "env", name: apiKeyEnv };
  if (apiKeyFile !== null) return { from: "file", path: apiKeyFile };
  if (apiKeyCommand !== null) return { from: "command", command: apiKeyCommand };
  return null;
}

/** Describes the source of a key for a message. Hides parts of a command that may be secrets. */
export function nameOfKeySource(source: KeySource): string {
  switch (source.from) {
    case "env":
      return source.name;
    case "file":
      return `the file ${quote(source.path)}`;
    case "command":
      return `the command ${quote(redact(source.command))}`;
  }
}

const KEY_SETTINGS = {
  env: "provider.apiKeyEnv",
  file: "provider.apiKeyFile",
  command: "provider.apiKeyCommand",
} as const;

export function keySettingOf({ from }: KeySource): (typeof KEY_SETTINGS)[KeySource["from"]] {
  return KEY_SETTINGS[from];
}

/** The key of the model service. Reads it again when it may have changed, so a new key needs no restart. */
export class ProviderKey {
  readonly #source: KeySource;
  readonly #env: Environment;
  #known: { key: string; readMs: number } | undefined;
  #reading: Promise<string> | undefined;
  #refusedMs = Number.NEGATIVE_INFINITY;

  constructor(source: KeySource, env: Environment) {
    this.#source = source;
    this.#env = env;
  }

  /**
   * The current key. If a command fails, this is the key that it printed last, because the failure may be short.
   *
   * @throws FleetError `FLEET_MODEL_UNCONFIGURED` when the key cannot be read. No message contains the key.
   */
  async get(): Promise<string> {
    const known = this.#known;
    if (known !== undefined && performance.now() - known.readMs < FRESH_MS[this.#source.from]) return known.key;
    const reading = this.#readOnce();
    if (known === undefined || this.#source.from !== "command") return await reading;
    return await reading.catch(() => known.key);
  }

  /**
   * The key to use after the service has refused the key `refused`: a newer key, or `refused` if there is no newer one.
   */
  async getAfterRefusal(refused: string): Promise<string> {
    if (this.#known !== undefined && this.#known.key !== refused) return this.#known.key;
    // A service that refuses every key must not make the fleet run a command for each request.
    if (this.#reading === undefined && performance.now() - this.#refusedMs < REFUSAL_PAUSE_MS) return refused;
    this.#refusedMs = performance.now();
    return await this.#readOnce();
  }

  async #readOnce(): Promise<string> {
    this.#reading ??= this.#read().finally(() => {
      this.#reading = undefined;
    });
    return await this.#reading;
  }

  async #read(): Promise<string> {
    const source = this.#source;
    const raw = await readSource(source, this.#env);
    // Remove the line break that `echo` writes into a file.
    const key = raw?.replace(/\r?\n$/, "");
    const fault = key === undefined ? "is not set" : secretFault(key, KEY);
    if (key === undefined || fault !== null) throw keyFault(source, fault);
    this.#known = { key, readMs: performance.now() };
    return key;
  }
}

async function readSource(source: KeySource, env: Environment): Promise<string | undefined> {
  switch (source.from) {
    case "env":
      return env[source.name];
    case "file":
      return await readSecretFile(source.path, KEY);
    case "command":
      return await readTokenCommand(source.command, { user: null, env, kind: KEY });
  }
}

function keyFault(source: KeySource, fault: string | null): FleetError {
  const name = nameOfKeySource(source);
  const setting = keySettingOf(source);
  return new FleetError("FLEET_MODEL_UNCONFIGURED", `${name}, which ${setting} names for the model's key, ${fault}`, {
    suggestions: [
      source.from === "env" ? `Set ${source.name} to the key.` : `Put the key, and nothing else, into ${name}.`,
      `Set ${setting} to null for a service that needs none.`,
    ],
  });
}

/** The SDK's form of a remote provider, without its key. */
export function describeProvider({ type, baseUrl, wireApi }: RemoteProvider): ProviderConfig {
  return { type, baseUrl, ...(type === "anthropic" ? {} : { wireApi }) };
}

/**
 * Adds the key. The runtime sends `bearerToken` in `Authorization: Bearer`, and `apiKey` in the header of the
 * provider's type.
 */
export function withKey(config: ProviderConfig, { bearer }: RemoteProvider, key: string): ProviderConfig {
  return bearer ? { ...config, bearerToken: key } : { ...config, apiKey: key };
}
