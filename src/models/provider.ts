import type { ProviderConfig } from "@github/copilot-sdk";
import type { Environment } from "../config/load/paths.js";
import type { Provider, RemoteProvider } from "../config/schema.js";
import { fleetClosed } from "../errors.js";
import type { EchoModel } from "./echo.js";
import { keySourceOf, ProviderKey } from "./provider-key.js";

/** The configured model provider of a fleet. Starts the echo model inside this process when it is first needed. */
export class ModelProvider implements AsyncDisposable {
  readonly #config: Provider | null;
  /** Null if the model service needs no key. */
  readonly #key: ProviderKey | null;
  #echo: Promise<EchoModel> | undefined;
  #isClosed = false;

  constructor(config: Provider | null, env: Environment) {
    this.#config = config;
    const source = config === null || config.type === "echo" ? null : keySourceOf(config);
    this.#key = source === null ? null : new ProviderKey(source, env);
  }

  /**
   * The provider as `session.create` and `session.resume` take it. Null for GitHub's own models.
   *
   * @throws FleetError `FLEET_MODEL_UNCONFIGURED` when the provider's key is missing; `FLEET_CLOSED`.
   */
  async get(): Promise<ProviderConfig | null> {
    if (this.#isClosed) throw fleetClosed();
    const config = this.#config;
    if (config === null) return null;
    if (config.type !== "echo")
      return { ...describeProvider(config), ...(this.#key === null ? {} : { apiKey: await this.#key.get() }) };
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

/** The SDK's form of a remote provider, without its key. */
function describeProvider({ type, baseUrl, wireApi }: RemoteProvider): ProviderConfig {
  return { type, baseUrl, ...(type === "anthropic" ? {} : { wireApi }) };
}
