import type { Config } from "../config/schema.js";
import { readRedisUrl } from "../config/values/redis-url.js";
import { type SandboxReport, separates } from "../model/sandbox.js";

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
 * leave the network open.
 */
export function reachesHost({ own, config, sandbox }: Reach): boolean {
  const { host } = config.session;
  if (!own || host !== "auto") return own && host === "owner";
  return sandbox !== undefined && separates(sandbox) && !hasOpenStore(config);
}

/** Whether the fleet uses a Redis without a password. */
export function hasOpenStore({ store }: Pick<Config, "store">): boolean {
  return store.kind === "redis" && readRedisUrl(store.url)?.password == null;
}

export const OPEN_STORE =
  "Redis asks for no password, so every agent that reaches it can delete the state of the fleet";
