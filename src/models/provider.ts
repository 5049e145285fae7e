import type { ProviderConfig } from "@github/copilot-sdk";
import type { Provider, RemoteProvider } from "../config/schema.js";
import { FleetError } from "../errors.js";

type Environment = Readonly<Record<string, string | undefined>>;

/** A provider that is ready to be sent with `session.create` and `session.resume`; null: GitHub's own models. */
export interface OpenedProvider extends AsyncDisposable {
  provider: ProviderConfig | null;
  /** Stops what had to be started for it. No session that uses it can take a turn afterwards. */
  close(): Promise<void>;
}

/**
 * Makes the configured provider usable: reads its key, or starts the echo model inside this process.
 *
 * @throws FleetError `FLEET_MODEL_UNCONFIGURED`.
 */
export async function openProvider(config: Provider | null, env: Environment): Promise<OpenedProvider> {
  if (config?.type !== "echo") return opened(resolveProvider(config, env), () => Promise.resolve());
  // Loaded only here: node:http is not free, and most fleets never echo.
  const { startEchoModel } = await import("./echo.js");
  const echo = await startEchoModel();
  return opened({ type: "openai", wireApi: "completions", baseUrl: echo.baseUrl, apiKey: "echo" }, () => echo.close());
}

/**
 * The SDK's form of a remote provider, with the key out of the variable that the configuration names.
 *
 * @throws FleetError `FLEET_MODEL_UNCONFIGURED` when the variable is missing or cannot be a key. Its value is never shown.
 */
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
    key === undefined ? "is not set" : key === "" ? "is empty" : "holds blanks or other characters that no key has";
  throw new FleetError(
    "FLEET_MODEL_UNCONFIGURED",
    `${name}, which provider.apiKeyEnv names for the model's key, ${fault}`,
    {
      suggestions: [`Set ${name} to the key`, "Set provider.apiKeyEnv to null for a service that needs none"],
    },
  );
}

function opened(provider: ProviderConfig | null, close: () => Promise<void>): OpenedProvider {
  return { provider, close, [Symbol.asyncDispose]: close };
}
