import type { Registry } from "../model/registry.js";

export const EMPTY_REGISTRY = JSON.stringify({ servers: {} } satisfies Registry);

export function parseRegistry(data: string): Registry {
  return withoutPrototype(JSON.parse(data) as Registry);
}

/** Removes the prototype of `servers`, because a server id may be `__proto__` or `constructor`. */
export function withoutPrototype(registry: Registry): Registry {
  return { ...registry, servers: Object.assign(Object.create(null), registry.servers) };
}
