import type { ConfigInput } from "../schema.js";
import type { Layer } from "./layers.js";

/**
 * Decides whether a project's `.copilotfleet.json` may set a key. The file is found by walking upward from the working
 * folder, so a stranger may have written it: every cloned repository can contain one.
 *
 * - `open`: sizes, times, counts and the model. The file may set these.
 * - `guarded`: programs, variables, addresses, stores, tokens, folders, approvals, and limits that protect others.
 *   These count only if the user trusts the file (`fleet/trust.ts`).
 * - A list: the harmless values of a key that is otherwise guarded.
 */
type Class = "open" | "guarded" | readonly unknown[];

/** The dotted names of all keys: every value, and every section that can be null. */
type KeyName<T = ConfigInput, Prefix extends string = ""> = {
  [K in keyof T & string]-?: NonNullable<T[K]> extends readonly unknown[] | string | number | boolean
    ? `${Prefix}${K}`
    : KeyName<NonNullable<T[K]>, `${Prefix}${K}.`> | (null extends T[K] ? `${Prefix}${K}` : never);
}[keyof T & string];

export const KEY_CLASSES: Readonly<Record<KeyName, Class>> = {
  // Decides which users share a server.
  isolation: "guarded",
  "ports.from": "open",
  "ports.to": "open",
  "pool.servers": "open",
  "pool.strategy": "open",
  "pool.warm": "open",
  "pool.idleTimeout": "open",
  "runtime.path": "guarded",
  "runtime.args": "guarded",
  "runtime.env": "guarded",
  "runtime.idleTimeout": "open",
  "auth.githubTokenEnv": "guarded",
  "auth.githubTokenFile": "guarded",
  "auth.githubTokenCommand": "guarded",
  // Null sends prompts to GitHub's models instead of the user's own provider.
  provider: "guarded",
  // The echo model is built in and sends nothing.
  "provider.type": ["echo"],
  "provider.baseUrl": "guarded",
  "provider.apiKeyEnv": "guarded",
  "provider.wireApi": "open",
  "session.model": "open",
  "session.ttl": "open",
  "session.maxActive": "open",
  "session.approve": ["none"],
  "session.host": ["none"],
  "session.tools": "guarded",
  "session.infinite.enabled": "open",
  "session.infinite.backgroundCompactionThreshold": "open",
  "lock.ttl": "open",
  "health.interval": "open",
  "health.timeout": "open",
  "health.failures": "open",
  "health.session": "open",
  "health.startup": "open",
  "health.restarts": "open",
  "health.backoff": "open",
  "health.stable": "open",
  "health.stalledTurn": "open",
  "recycle.maxMemory": "open",
  "recycle.maxAge": "open",
  "recycle.maxSessions": "open",
  "recycle.pause": "open",
  "drain.timeout": "open",
  "serve.listen": "guarded",
  "serve.accessLog": "open",
  "serve.metrics": "guarded",
  "serve.gcInterval": "open",
  "serve.maxFrame": "guarded",
  // Decides whether the fleet believes a proxy about a client's address.
  "serve.proxyProtocol": [false],
  "serve.turnWait": "open",
  "serve.logMaxSize": "open",
  "serve.logFiles": "open",
  // These protect each user from the others.
  "limits.default.connections": "guarded",
  "limits.default.sessions": "guarded",
  "limits.default.requestsInFlight": "guarded",
  "limits.default.unreadBytes": "guarded",
  "limits.total.connections": "guarded",
  "limits.total.sessions": "guarded",
  "limits.total.requestsInFlight": "guarded",
  "limits.total.unreadBytes": "guarded",
  store: "guarded",
  "storeOptions.insecure": "guarded",
  "host.name": "guarded",
  "host.advertise": "guarded",
  "host.ttl": "guarded",
  "storage.shared": "guarded",
};

const classes: ReadonlyMap<string, Class> = new Map(Object.entries(KEY_CLASSES));

export function guardedKeys(layer: Layer): string[] {
  return [...layer].filter(([name, { value }]) => isGuarded(name, value)).map(([name]) => name);
}

function isGuarded(name: string, value: unknown): boolean {
  // A key without a class is guarded, because we know nothing about it.
  const found = classes.get(name) ?? "guarded";
  return typeof found === "string" ? found === "guarded" : !found.includes(value);
}
