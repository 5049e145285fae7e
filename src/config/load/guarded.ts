import type { Layer } from "./layers.js";

/**
 * Whether a project's `.copilotfleet.json` may set a key. A stranger may have written the file, because it may be part
 * of a cloned repository. So the file may set a guarded key only if the user trusts the file (`fleet/trust.ts`). If the
 * class is a list, the file may set the values in the list without trust. A test checks that each key has a class.
 */
type Class = "open" | "guarded" | readonly unknown[];

/** The open keys: sizes, times, counts and the model. */
const OPEN = `
  ports.from ports.to
  pool.servers pool.strategy pool.warm pool.idleTimeout
  runtime.idleTimeout
  provider.wireApi provider.bearer
  session.model session.ttl session.maxActive session.answerTimeout session.infinite.enabled session.infinite.backgroundCompactionThreshold
  lock.ttl
  health.interval health.timeout health.failures health.session health.startup health.restarts health.backoff
  health.stable health.stalledTurn
  recycle.maxMemory recycle.maxAge recycle.maxSessions recycle.pause
  drain.timeout
  serve.accessLog serve.gcInterval serve.turnWait serve.logMaxSize serve.logFiles`;

/**
 * The guarded keys: programs, variables, addresses, stores, tokens, folders, approvals, and limits that protect others.
 * `isolation` is here because it decides which users share a server. `provider` is here because null would send prompts
 * to GitHub's models and not to the user's own provider. `user` is here because prompts would go into the sessions of
 * another user, who can read them.
 */
const GUARDED = `
  isolation
  runtime.path runtime.args runtime.env
  auth.githubTokenEnv auth.githubTokenFile auth.githubTokenCommand
  auth.githubApp.appId auth.githubApp.installationId auth.githubApp.privateKeyFile
  provider provider.baseUrl provider.apiKeyEnv provider.apiKeyFile provider.apiKeyCommand
  provider.prices
  session.tools session.maxCredits
  sandbox.mode sandbox.binds sandbox.memory sandbox.processes sandbox.openFiles sandbox.cpu sandbox.disk
  sandbox.tools sandbox.network sandbox.allow sandbox.unixSockets
  identity.jwt identity.github.api identity.github.organizations
  serve.listen serve.http http.origins http.proxies serve.metrics serve.maxFrame serve.tls.cert serve.tls.key serve.tls.clientCa
  limits.default.connections limits.default.sessions limits.default.requestsInFlight limits.default.unreadBytes
  limits.default.turnsPerMinute limits.default.concurrentTurns limits.default.tokensPerDay limits.default.tokensPerMonth
  limits.groups
  limits.total.connections limits.total.sessions limits.total.requestsInFlight limits.total.unreadBytes
  events.retention events.maxSize
  usage.retention
  identity.tokenTtl
  store storeOptions.insecure storeOptions.keyFile
  host.name host.advertise host.ttl host.tls.cert host.tls.key host.tls.ca
  host.ca host.peers
  storage.shared
  user`;

const classed = (keys: string, found: Class) =>
  keys
    .trim()
    .split(/\s+/)
    .map((key) => [key, found] as const);

export const KEY_CLASSES: ReadonlyMap<string, Class> = new Map<string, Class>([
  ...classed(OPEN, "open"),
  ...classed(GUARDED, "guarded"),
  // The echo model is built in and sends nothing.
  ["provider.type", ["echo"]],
  ["modelGateway", ["on"]],
  ["session.approve", ["none"]],
  ["session.host", ["none"]],
  // This key decides whether the fleet believes a proxy about a client's address.
  ["serve.proxyProtocol", [false]],
  ["serve.insecure", [false]],
  ["host.insecure", [false]],
]);

export function guardedKeys(layer: Layer): string[] {
  return [...layer].filter(([name, { value }]) => isGuarded(name, value)).map(([name]) => name);
}

function isGuarded(name: string, value: unknown): boolean {
  // A key without a class is guarded, because we know nothing about it.
  const found = KEY_CLASSES.get(name) ?? "guarded";
  return typeof found === "string" ? found === "guarded" : !found.includes(value);
}
