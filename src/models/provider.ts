import type { ProviderConfig } from "@github/copilot-sdk";
import type { Environment } from "../config/load/paths.js";
import type { Provider, RemoteProvider } from "../config/schema.js";
import { FleetError, fleetClosed } from "../errors.js";
import type { EchoModel } from "./echo.js";

/** The configured model provider of a fleet. Starts the echo model inside this process when it is first needed. */
export class ModelProvider implements AsyncDisposable {
  readonly #config: Provider | null;
  readonly #env: Environment;
  #echo: Promise<EchoModel> | undefined;
  #isClosed = false;

  constructor(config: Provider | null, env: Environment) {
    this.#config = config;
    this.#env = env;
  }

  /**
   * The provider as `session.create` and `session.resume` take it. Null for GitHub's own models.
   *
   * @throws FleetError `FLEET_MODEL_UNCONFIGURED` when the provider's key is missing; `FLEET_CLOSED`.
   */
  async get(): Promise<ProviderConfig | null> {
    if (this.#isClosed) throw fleetClosed();
    if (this.#config?.type !== "echo") return resolveProvider(this.#config, this.#env);
    // Load the echo model only here: node:http takes time to load, and most fleets never use it.
    this.#echo ??= import("./echo.js").then(async ({ startEchoModel }) => await startEchoModel());
    const { baseUrl } = await this.#echo;
    return { type: "openai", wireApi: "completions", baseUrl, apiKey: "echo" };
  }

  /** Stops the echo model if it was started. Afterwards, no session that uses it can take a turn. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true;
    await (await this.#echo)?.close();
  }
}

/** The SDK's form of a remote provider. No message contains the key. */
export function resolveProvider(config: RemoteProvider | null, env: Environment): ProviderConfig | null {
  if (config === null) return null;
  const { type, baseUrl, apiKeyEnv, wireApi } = config;
  return {
    type,
    baseUrl,
    ...(type === "anthropic" ? {} : { wireApi }),
    ...(apiKeyEnv === null ? {} : { apiKey: readKey(apiKeyEnv, env) }),
  };
}

function readKey(name: string, env: Environment): string {
  const key = env[name];
  if (key !== undefined && /^[\x21-\x7e]+$/.test(key)) return key;
  const fault =
    key === undefined ? "is not set" : key === "" ? "is empty" : "contains spaces or other characters that no key has";
  throw new FleetError(
    "FLEET_MODEL_UNCONFIGURED",
    `${name}, which provider.apiKeyEnv names for the model's key, ${fault}`,
    { suggestions: [`Set ${name} to the key.`, "Set provider.apiKeyEnv to null for a service that needs none."] },
  );
}
