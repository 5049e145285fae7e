import type { Params } from "../wire/client-message.js";

/** Parameters that name a model service, or credentials for one. */
const CREDENTIALS = ["provider", "providers", "gitHubToken", "gitHubTokenProviderRegistrationId"];

/** Whether a client opens its session with a model service or a token of its own. */
export function bringsCredentials(asked: Params): boolean {
  return CREDENTIALS.some((name) => asked[name] !== undefined && asked[name] !== null);
}
