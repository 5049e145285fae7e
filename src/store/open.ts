import { readRedisUrl } from "../config/values/redis-url.js";
import { FleetError, quote } from "../errors.js";
import { openFileStore } from "./file/file-store.js";
import type { Store } from "./ports.js";
import { openRedisStore } from "./redis/redis-store.js";

/**
 * Opens the file store if `url` is "file", or the store at a Redis URL. The other parameters are those of {@link
 * openRedisStore}.
 */
export function openStore(
  url: string,
  root: string,
  host?: string,
  instance?: () => string | null,
  keyFile: string | null = null,
): Store {
  if (url === "file") return openFileStore(root);
  const target = readRedisUrl(url);
  if (target !== null) return openRedisStore(target, root, { host, instance, keyFile });
  // The URL may contain a password, so show only its scheme.
  const named = /^[a-z][a-z0-9+.-]*:/i.exec(url)?.[0] ?? url;
  throw new FleetError("FLEET_CONFIG_INVALID", `The store ${quote(named)} is not supported. Use "file" or Redis.`, {
    suggestions: ['Set "store" to "file" or to a redis:// URL in the configuration.'],
  });
}
