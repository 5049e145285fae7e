import type { ProviderConfig } from "@github/copilot-sdk";
import type { RemoteProvider } from "../config/schema.js";

/** The SDK's form of a remote provider, without its key. */
export function describe({ type, baseUrl, wireApi }: RemoteProvider): ProviderConfig {
  return { type, baseUrl, ...(type === "anthropic" ? {} : { wireApi }) };
}

/** The runtime sends the one in `Authorization: Bearer`, and the other in the header of the provider's type. */
export function withKey(config: ProviderConfig, { bearer }: RemoteProvider, key: string): ProviderConfig {
  return bearer ? { ...config, bearerToken: key } : { ...config, apiKey: key };
}
