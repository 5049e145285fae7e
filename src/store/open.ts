import { readRedisUrl } from "../config/redis-url.js";
import { FleetError, quote } from "../errors.js";
import { openFileStore } from "./file/file-store.js";
import { openRedisStore } from "./redis/redis-store.js";
import type { Store } from "./store.js";

/**
 * Opens the store that the configuration names: "file", or a Redis URL. Nothing is touched and nothing is connected yet.
 *
 * @param root The state folder, which the file store keeps everything in.
 * @param host The name of this host, where several share a Redis; left out: the fleet knows no hosts.
 * @param instance The random id of this host's state folder, once it has one: another host of that name is refused by it.
 * @throws FleetError `FLEET_CONFIG_INVALID` for a store that this version does not have.
 */
export function openStore(url: string, root: string, host?: string, instance?: () => string | null): Store {
  if (url === "file") return openFileStore(root);
  const target = readRedisUrl(url);
  if (target !== null) {
    const named = host === undefined ? {} : { host };
    return openRedisStore(target, root, instance === undefined ? named : { ...named, instance });
  }
  // The URL may carry a password: only its scheme is shown.
  const named = /^[a-z][a-z0-9+.-]*:/i.exec(url)?.[0] ?? url;
  throw new FleetError("FLEET_CONFIG_INVALID", `The store ${quote(named)} is not available: "file" and Redis are.`, {
    suggestions: ['Set "store" to "file" or to a redis:// URL in the configuration.'],
  });
}
