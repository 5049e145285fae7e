import type { Params } from "../wire/client-message.js";

/** Parameters that name a model service, or credentials for one. */
const CREDENTIALS = ["provider", "providers", "gitHubToken", "gitHubTokenProviderRegistrationId"];

/** Whether the client names its own model service or token when it opens a session. */
export function bringsCredentials(asked: Params): boolean {
  return CREDENTIALS.some((name) => asked[name] !== undefined && asked[name] !== null);
}
