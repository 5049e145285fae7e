import type { Registry } from "../store/store.js";

/** The registry before the first write. */
export const EMPTY_REGISTRY = JSON.stringify({ servers: {} } satisfies Registry);

/** `servers` has no prototype, because a server id may be `__proto__` or `constructor`. */
export function parseRegistry(data: string): Registry {
  const registry = JSON.parse(data) as Registry;
  return { ...registry, servers: Object.assign(Object.create(null), registry.servers) };
}
