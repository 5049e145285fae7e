import { resolve } from "node:path";
import { quote } from "../base/errors.js";
import { writeDuration } from "../base/values/measures.js";
import { reachesFiles } from "../base/values/names.js";
import { allowsName, asciiName, isLoopback, readNetworkRule, readRedisUrl } from "../base/values/network.js";
import { countOf } from "../base/values/text.js";
import type { Layer } from "./load/layers.js";
import type { Environment } from "./load/paths.js";
import { attempt, conflict, invalidValue, type Origin, throwProblem } from "./problem.js";
import type { Address } from "./rules.js";
import type { Config } from "./schema.js";

const HTTPS_PORT = 443;

/** Refuses network settings that contradict other settings, or with which no turn could reach a model. */
function checkNetwork(
  { sandbox, provider }: Pick<Config, "sandbox" | "provider">,
  origins: ReadonlyMap<string, Origin>,
  { env }: { env: Environment },
): void {
  const { network, allow, mode } = sandbox;
  const restriction = `sandbox.network is "${network}"`;
  if (allow.length > 0 && network !== "allow-list") {
    const allowed = 'sandbox.network "allow-list", or no hosts in sandbox.allow';
    throw conflict(
      ["sandbox.allow", "sandbox.network"],
      [`sandbox.allow has hosts, but ${restriction}`, allowed],
      origins,
    );
  }
  if (network === "open" || network === "auto") return;
  if (mode === "none") {
    const problem = `${restriction}, which needs a sandbox, but sandbox.mode is "none"`;
    const allowed = 'another sandbox.mode, or sandbox.network "open"';
    throw conflict(["sandbox.network", "sandbox.mode"], [problem, allowed], origins);
  }
  if (provider !== null || network === "public") return;
  const rules = network === "none" ? [] : allow.map(readNetworkRule).filter((rule) => rule !== null);
  const missing = gitHubHosts(env).filter(({ name, port }) => !rules.some((rule) => allowsName(rule, name, port)));
  if (missing.length === 0) return;
  const entries = missing.map(({ name, port }) => `"${name}${port === HTTPS_PORT ? "" : `:${port}`}"`).join(" and ");
  const problem = `${restriction} and provider is null, so that servers could not reach GitHub's models`;
  const allowed = `sandbox.network "allow-list" with ${entries} in sandbox.allow, or a provider`;
  throw conflict(["sandbox.network", "sandbox.allow", "provider"], [problem, allowed], origins);
}

/** The hosts that the runtime needs for GitHub's models. Every server gets the variables that this reads. */
function gitHubHosts(env: Environment): { name: string; port: number }[] {
  const urls = [
    env.COPILOT_API_URL ?? "https://api.githubcopilot.com",
    env.COPILOT_DEBUG_GITHUB_API_URL ?? "https://api.github.com",
  ];
  return urls.flatMap((url) => {
    if (!URL.canParse(url)) return [];
    const { hostname, port, protocol } = new URL(url);
    const name = asciiName(hostname);
    return name === null ? [] : [{ name, port: Number(port || (protocol === "http:" ? 80 : HTTPS_PORT)) }];
  });
}

/** Refuses a certificate or a key without the other one, and `serve.tls.clientCa` without `serve.tls.cert`. */
function checkTls({ serve, host }: Pick<Config, "serve" | "host">, origins: ReadonlyMap<string, Origin>): void {
  checkPair("serve", serve.tls, origins);
  checkPair("host", host.tls, origins);
  if (serve.tls.clientCa === null || serve.tls.cert !== null) return;
  const problem = "serve.tls.clientCa is set without serve.tls.cert";
  const allowed = "serve.tls.cert and serve.tls.key together";
  throw conflict(["serve.tls.clientCa", "serve.tls.cert"], [problem, allowed], origins);
}

function checkPair(
  section: "serve" | "host",
  { cert, key }: { cert: string | null; key: string | null },
  origins: ReadonlyMap<string, Origin>,
): void {
  if ((cert === null) === (key === null)) return;
  const names = [`${section}.tls.cert`, `${section}.tls.key`] as const;
  const [set, missing] = cert === null ? names.toReversed() : names;
  throw conflict([...names], [`${set} is set without ${missing}`, `${names.join(" and ")} together`], origins);
}

const FIRST_FREE_PORT = 1024;

const CHECKS = [
  checkPorts,
  checkAuth,
  checkGitHub,
  checkTools,
  checkNetwork,
  checkHealth,
  checkServe,
  checkTls,
  checkStore,
  checkStorage,
  checkSharedFolder,
] as const;

interface Machine {
  uid: number | undefined;
  stateRoot: string;
  env: Environment;
}

/** Checks whether the values fit together and suit this machine and account. Passes each problem to `report`. */
export function checkTogether(config: Config, given: Layer, machine: Machine, report = throwProblem): void {
  const origins = new Map([...given].map(([name, { origin }]) => [name, origin]));
  for (const check of CHECKS) attempt(() => check(config, origins, machine), report);
}

/** Refuses a shared folder that is in the state folder or contains it, because the state folder belongs to one host. */
function checkSharedFolder({ storage }: Config, origins: Map<string, Origin>, { stateRoot }: Machine): void {
  if (storage.shared === null) return;
  const shared = resolve(storage.shared);
  const isWithin = (path: string, folder: string) => path === folder || path.startsWith(folder.replace(/\/*$/, "/"));
  if (!isWithin(shared, stateRoot) && !isWithin(stateRoot, shared)) return;
  const allowed = `a folder that all hosts mount, neither in the state folder ${quote(stateRoot)} nor around it`;
  throw invalidValue("storage.shared", storage.shared, allowed, origins.get("storage.shared"));
}

function checkStorage({ storage, store, host }: Config, origins: Map<string, Origin>): void {
  if (storage.shared !== null && store.kind === "file") {
    const problem = 'storage.shared is set, but the store "file" belongs to one host';
    throw conflict(["storage.shared", "store"], [problem, "a Redis store"], origins);
  }
  if (host.advertise === null) return;
  const { host: name, port } = host.advertise;
  const refuse = (allowed: string) => {
    const given = `${name.includes(":") ? `[${name}]` : name}:${port}`;
    throw invalidValue("host.advertise", given, allowed, origins.get("host.advertise"));
  };
  if (port === 0)
    refuse('the host:port at which other hosts reach this one, with a port other than 0, such as "10.0.0.1:4300"');
  // Refuse an unspecified address, such as 0.0.0.0, because a host that connects to it reaches itself.
  if (/^[0.]+$/.test(name) || /^[0:]+$/.test(name)) {
    refuse('the address at which other hosts reach this one, such as "10.0.0.1:4300"');
  }
}

function checkPorts({ ports, pool }: Config, origins: Map<string, Origin>, { uid }: Machine): void {
  if (ports.from > ports.to) {
    const problem = `ports.from is ${ports.from}, which is more than ports.to, ${ports.to}`;
    const advice = `For example, set ports.from=${ports.to} and ports.to=${ports.from}.` as const;
    const allowed = `a ports.from of ${ports.to} or less, or a ports.to of ${ports.from} or more`;
    throw conflict(["ports.from", "ports.to"], [problem, allowed], origins, advice);
  }
  checkPrivilege("ports.from", ports.from, origins, uid);
  const size = ports.to - ports.from + 1;
  if (pool.servers > size) {
    const problem = `The port range ${ports.from}-${ports.to} has ${countOf(size, "port")} for ${countOf(pool.servers, "server")}`;
    throw conflict(["ports.from", "ports.to", "pool.servers"], [problem, "at least one port for each server"], origins);
  }
}

function checkPrivilege(name: string, port: number, origins: Map<string, Origin>, uid: number | undefined): void {
  if (port === 0 || port >= FIRST_FREE_PORT || uid === undefined || uid === 0) return;
  const allowed = `a port from ${FIRST_FREE_PORT} to 65535, because only root may use lower ports`;
  throw invalidValue(name, port, allowed, origins.get(name));
}

function checkAuth({ auth }: Config, origins: Map<string, Origin>): void {
  const named = Object.entries(auth).filter(([, value]) => value !== null);
  if (named.length < 2) return;
  const names = named.map(([part]) => `auth.${part}`);
  throw conflict(names, [`${names.join(" and ")} are both set`, "one source for the token"], origins);
}

/** Refuses sign-on with GitHub together with `auth`, because each of them provides the GitHub tokens of users. */
function checkGitHub({ identity, auth }: Config, origins: Map<string, Origin>): void {
  const { api } = identity.github;
  const names = Object.entries(auth).flatMap(([part, value]) => (value === null ? [] : [`auth.${part}`]));
  if (api === null || names.length === 0) return;
  const problem = `identity.github.api and ${names.join(" and ")} are both set`;
  const allowed = "one of them, because sessions of users who sign on with GitHub run with their own tokens";
  throw conflict(["identity.github.api", ...names], [problem, allowed], origins);
}

/**
 * On shared servers, refuses tools that reach files if every use is approved, because such a tool reaches the histories
 * of all users.
 */
function checkTools({ isolation, session }: Config, origins: Map<string, Origin>): void {
  if (isolation !== "shared" || session.approve !== "all") return;
  const reaching = session.tools?.filter(reachesFiles) ?? [];
  if (reaching.length === 0) return;
  const tools = reaching.map((name) => quote(name)).join(", ");
  const problem = `session.approve is "all", and session.tools has ${tools}, which reach every user's history on a shared server`;
  const allowed = 'session.approve "none", or session.tools with "custom:*" and tools that do not reach files';
  throw conflict(["session.approve", "session.tools", "isolation"], [problem, allowed], origins);
}

function checkHealth({ health }: Config, origins: Map<string, Origin>): void {
  // With a longer timeout, the first missed probe alone would take longer than all allowed failures together.
  const limitMs = health.intervalMs * health.failures;
  if (health.timeoutMs <= limitMs) return;
  const problem = `health.timeout is ${writeDuration(health.timeoutMs)}`;
  const allowed = `at most health.interval × health.failures, which is ${writeDuration(limitMs)}`;
  throw conflict(["health.timeout", "health.interval", "health.failures"], [problem, allowed], origins);
}

function checkServe({ serve }: Config, origins: Map<string, Origin>, { uid }: Machine): void {
  checkPrivilege("serve.metrics", serve.metrics.port, origins, uid);
  if (serve.http !== null) checkPrivilege("serve.http", serve.http.port, origins, uid);
  if (serve.listen !== null) checkPrivilege("serve.listen", serve.listen.port, origins, uid);
  for (const [one, other] of [
    ["listen", "metrics"],
    ["listen", "http"],
    ["metrics", "http"],
  ] as const) {
    const [a, b] = [serve[one], serve[other]];
    if (a === null || b === null || !isSamePort(a, b)) continue;
    // The HTTP API and the metrics may share an address.
    const mayShare = one === "metrics";
    if (mayShare && a.host === b.host) continue;
    const problem = `serve.${one} and serve.${other} both use port ${a.port}`;
    const allowed = `a different port for each${mayShare ? ", or the same host for both" : ""}`;
    throw conflict([`serve.${one}`, `serve.${other}`], [problem, allowed], origins);
  }
}

/** Whether the addresses conflict, so that a process cannot listen on both. An IPv6 wildcard also covers IPv4. */
function isSamePort(a: Address, b: Address): boolean {
  if (a.port === 0 || a.port !== b.port) return false;
  const covers = ({ host }: Address, other: Address) =>
    host === other.host ||
    host === "::" ||
    (host === "0.0.0.0" && !other.host.includes(":")) ||
    (host === "localhost" && (other.host === "127.0.0.1" || other.host === "::1"));
  return covers(a, b) || covers(b, a);
}

/** Refuses a Redis without TLS on another host. */
function checkStore({ store, insecure }: Config, origins: Map<string, Origin>): void {
  if (store.kind !== "redis") return;
  if (insecure || !isPlaintext(store.url)) return;
  throw invalidValue("store", store.url, ALLOWED_PLAINTEXT, origins.get("store"));
}

/** The text after "Allowed:" in a message about a Redis without TLS. */
export const ALLOWED_PLAINTEXT =
  'rediss:// (TLS) for a Redis on another host. On a trusted network, "insecure": true allows plain text';

export function isPlaintext(url: string): boolean {
  const target = readRedisUrl(url);
  return target !== null && !target.tls && !isLoopback(target);
}
