import { isDeepStrictEqual } from "node:util";
import type { Config } from "../../config/schema.js";
import type { ServerRecord } from "../../model/server.js";
import { tokenSourceFromConfig } from "../../models/github-token.js";
import { reachesHost } from "../../pool/host-reach.js";
import { hostDenied, methodDenied } from "../wire/refusals.js";
import { reachOf } from "./reach.js";

/*
 * Settings of a whole server that a client may change before its first session.
 *
 * - When the server ends, the runtime forgets the settings, and the client cannot repeat them while sessions are loaded.
 *   So the client's connection ends with the server, as it does on a bare server.
 * - When the client that answers the server's model requests hangs up, the runtime keeps waiting for it: turns never end,
 *   and no other client can answer (measured with 1.0.85). So the server ends with the connection of this client.
 */

/**
 * For each method, the option of the SDK that sends it. A refusal names the option, because users do not know the method.
 */
const OPTIONS: Record<string, string> = {
  "plugins.builtin.set": "builtinPluginDirectories",
  "llmInference.setProvider": "requestHandler",
  "llmInference.httpResponseStart": "requestHandler",
  "llmInference.httpResponseChunk": "requestHandler",
};

/** Whether the server has to end with the connection of the client that made this request. */
export function needsItsClient(method: string): boolean {
  return method === "llmInference.setProvider";
}

type Credentialed = Pick<ServerRecord, "token" | "user">;

export function checkSetup(
  method: string,
  link: { own: boolean; server: Credentialed & Pick<ServerRecord, "sandbox"> },
  config: Config,
): void {
  const { own, server } = link;
  const option = `the SDK's option "${OPTIONS[method]}"`;
  if (!own) throw methodDenied(method, `${option} affects the whole server, which other users share`);
  if (!reachesHost(reachOf(link, config))) throw hostDenied(method, `${option} reaches files or programs`);
  const sendsModelRequests = method !== "plugins.builtin.set";
  if (sendsModelRequests && isGivenCredentials(server, config)) {
    const harm = "would send all model requests of the server to this client, including the fleet's credentials";
    throw methodDenied(method, `${option} ${harm}`);
  }
}

export function refuseSetupElsewhere(method: string): never {
  const option = `the SDK's option "${OPTIONS[method]}"`;
  throw methodDenied(method, `${option} works only at the front door of the user's own host`);
}

/** Whether the fleet pays for model requests, with its own provider's key or with GitHub tokens. */
export function hasCredentials({ provider, auth }: Config): boolean {
  return provider !== null || Object.values(auth).some((source) => source !== null);
}

/**
 * Whether the server's model requests contain credentials that are not the user's own. A GitHub token is the user's own
 * if the configuration names a token for each user.
 */
function isGivenCredentials({ token, user }: Credentialed, { provider, auth }: Config): boolean {
  if (provider !== null) return true;
  const configured = tokenSourceFromConfig(auth, user);
  if (token !== null && !isDeepStrictEqual(token, configured)) return true;
  const isForEachUser = Object.values(auth).some((source) => typeof source === "string" && source.includes("{user}"));
  return configured !== null && !isForEachUser;
}
