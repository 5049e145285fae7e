import type { ProviderConfig } from "@github/copilot-sdk";
import type { NamedSource } from "../base/server.js";
import type { Environment } from "../config/load/paths.js";
import type { RemoteProvider } from "../config/schema.js";
import { KEY, readSecret } from "../config/secret.js";

/** How long a key is used before its source is read again, in milliseconds. */
const FRESH_MS = { env: 0, file: 1_000, command: 5 * 60_000 };
/** If the service keeps refusing a secret, the secret is read again at most once in this time, in milliseconds. */
const REFUSAL_PAUSE_MS = 5_000;

interface CacheRules {
  /** How long the secret is used before it is read again, in milliseconds. */
  freshMs: number;
  /** Whether the last secret stays in use after this failure. Default: it does not. */
  outlives?: (error: unknown) => boolean;
  /** Whether the last secret counts as just read after such a failure. */
  renews?: boolean;
}

/** A secret that is read again when it may have changed, so that a new secret needs no restart. */
export class CachedSecret {
  readonly #read: () => Promise<string>;
  readonly #rules: CacheRules;
  #known: { secret: string; readMs: number } | undefined;
  #reading: Promise<string> | undefined;
  #refusedMs = Number.NEGATIVE_INFINITY;

  /** @param read reads the secret from its source; `isKnown` tells whether an earlier read succeeded */
  constructor(read: (isKnown: boolean) => Promise<string>, rules: CacheRules) {
    this.#read = async () => await read(this.#known !== undefined);
    this.#rules = rules;
  }

  /** The current secret. Throws the error of its source. */
  async get(): Promise<string> {
    const known = this.#known;
    const { freshMs, outlives, renews } = this.#rules;
    if (known !== undefined && performance.now() - known.readMs < freshMs) return known.secret;
    try {
      return await this.#readOnce();
    } catch (error) {
      if (known !== undefined && outlives?.(error) === true) {
        if (renews === true) known.readMs = performance.now();
        return known.secret;
      }
      this.#known = undefined;
      throw error;
    }
  }

  /**
   * The secret to use after a service has refused `refused`: a newer one, or `refused` if there is no newer one.
   */
  async getAfterRefusal(refused: string): Promise<string> {
    if (this.#known !== undefined && this.#known.secret !== refused) return this.#known.secret;
    // A service that refuses every secret must not make the fleet run a command for each request.
    if (this.#reading === undefined && performance.now() - this.#refusedMs < REFUSAL_PAUSE_MS) return refused;
    this.#refusedMs = performance.now();
    return await this.#readOnce();
  }

  /** Makes the next {@link get} read the source again. */
  forget(): void {
    this.#known = undefined;
  }

  async #readOnce(): Promise<string> {
    this.#reading ??= this.#read().finally(() => {
      this.#reading = undefined;
    });
    const secret = await this.#reading;
    this.#known = { secret, readMs: performance.now() };
    return secret;
  }
}

/**
 * The key of the model service. If a command fails, the key that it printed last stays in use, because the failure may
 * be short. Throws `FLEET_MODEL_UNCONFIGURED` when the key cannot be read. No message contains the key.
 */
export class ProviderKey extends CachedSecret {
  constructor(source: NamedSource, env: Environment) {
    const outlives = () => source.from === "command";
    super(async () => await readSecret(source, KEY, { env }), { freshMs: FRESH_MS[source.from], outlives });
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
