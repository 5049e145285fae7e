import type { ProviderConfig } from "@github/copilot-sdk";
import type { NamedSource } from "../base/server.js";
import type { Environment } from "../config/load/paths.js";
import type { RemoteProvider } from "../config/schema.js";
import { KEY, readSecret } from "../config/secret.js";

/** How long a key is used before its source is read again, in milliseconds. */
const FRESH_MS = { env: 0, file: 1_000, command: 5 * 60_000 };
/** If the service keeps refusing keys, the key is read again at most once in this time, in milliseconds. */
const REFUSAL_PAUSE_MS = 5_000;

/** The key of the model service. Reads it again when it may have changed, so a new key needs no restart. */
export class ProviderKey {
  readonly #source: NamedSource;
  readonly #env: Environment;
  #known: { key: string; readMs: number } | undefined;
  #reading: Promise<string> | undefined;
  #refusedMs = Number.NEGATIVE_INFINITY;

  constructor(source: NamedSource, env: Environment) {
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
    const key = await readSecret(this.#source, KEY, { env: this.#env });
    this.#known = { key, readMs: performance.now() };
    return key;
  }
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
