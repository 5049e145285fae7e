import type { Config } from "../config/schema.js";
import { readRedisUrl } from "../config/values/redis-url.js";
import { type SandboxReport, separates } from "../model/sandbox.js";
import { givesKeyToServers, hasKey } from "../models/provider.js";

/** The facts that decide which requests about files, programs and approvals a server may get from a client. */
export interface Reach {
  config: Config;
  /** Whether the server is the user's own, with no other user's sessions on it. */
  own: boolean;
  /** The server's sandbox; undefined if it has none. */
  sandbox: SandboxReport | undefined;
}

/**
 * Whether the client may use files and programs on the server's machine. The setting "auto" allows that if the server's
 * sandbox keeps everything else out of reach. A Redis without a password counts as in reach, because a sandbox may
 * leave the network open. So does a provider's key in the server's memory.
 */
export function reachesHost({ own, config, sandbox }: Reach): boolean {
  const { host } = config.session;
  if (!own || host !== "auto") return own && host === "owner";
  return sandbox !== undefined && separates(sandbox) && !hasOpenStore(config) && !mayHaveKey(config, sandbox);
}

/** Whether the fleet uses a Redis without a password. */
export function hasOpenStore({ store }: Pick<Config, "store">): boolean {
  return store.kind === "redis" && readRedisUrl(store.url)?.password == null;
}

export const OPEN_STORE =
  "Redis asks for no password, so every agent that reaches it can delete the state of the fleet";

/**
 * Whether the server's memory may contain the provider's key. A server that started before the model gateway was turned
 * on may still have it.
 */
function mayHaveKey(config: Config, sandbox: SandboxReport): boolean {
  return givesKeyToServers(config) || (hasKey(config.provider) && sandbox.not.includes("provider-key"));
}
