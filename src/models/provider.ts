import type { ProviderConfig } from "@github/copilot-sdk";
import type { Environment } from "../config/load/paths.js";
import type { Provider, RemoteProvider } from "../config/schema.js";
import { FleetError } from "../errors.js";

/** A provider that can be sent with `session.create` and `session.resume`. */
export interface OpenedProvider extends AsyncDisposable {
  /** Null for GitHub's own models. */
  provider: ProviderConfig | null;
  /** Stops the echo model if it was started. Afterwards, no session that uses it can take a turn. */
  close(): Promise<void>;
}

/** Makes the configured provider usable: reads its key, or starts the echo model inside this process. */
export async function openProvider(config: Provider | null, env: Environment): Promise<OpenedProvider> {
  if (config?.type !== "echo") return opened(resolveProvider(config, env), () => Promise.resolve());
  // Load the echo model only here: node:http takes time to load, and most fleets never use it.
  const { startEchoModel } = await import("./echo.js");
  const echo = await startEchoModel();
  return opened({ type: "openai", wireApi: "completions", baseUrl: echo.baseUrl, apiKey: "echo" }, () => echo.close());
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
    key === undefined ? "is not set" : key === "" ? "is empty" : "contains blanks or other characters that no key has";
  throw new FleetError(
    "FLEET_MODEL_UNCONFIGURED",
    `${name}, which provider.apiKeyEnv names for the model's key, ${fault}`,
    { suggestions: [`Set ${name} to the key`, "Set provider.apiKeyEnv to null for a service that needs none"] },
  );
}

function opened(provider: ProviderConfig | null, close: () => Promise<void>): OpenedProvider {
  return { provider, close, [Symbol.asyncDispose]: close };
}
