import type { Registry } from "./store.js";

/** The registry that nothing was ever written to. */
export const EMPTY_REGISTRY = JSON.stringify({ servers: {} } satisfies Registry);

/** A key such as `__proto__` or `constructor` in `servers` is an id like any other, hence no prototype. */
export function parseRegistry(data: string): Registry {
  const registry = JSON.parse(data) as Registry;
  return { ...registry, servers: Object.assign(Object.create(null), registry.servers) };
}
