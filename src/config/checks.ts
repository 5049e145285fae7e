import { resolve } from "node:path";
import { quote } from "../base/errors.js";
import { writeDuration } from "../base/values/measures.js";
import { reachesFiles } from "../base/values/names.js";
import { allowsName, asciiName, isLoopback, readNetworkRule, readRedisUrl } from "../base/values/network.js";
import { countOf } from "../base/values/text.js";
import type { Layer } from "./load/layers.js";
import type { Environment } from "./load/paths.js";
import { attempt, conflict, invalidValue, throwProblem } from "./problem.js";
import type { Address } from "./rules.js";
import type { Config } from "./schema.js";

interface Machine {
  uid: number | undefined;
  stateRoot: string;
  env: Environment;
}

/** The surroundings of a check, and its two ways to refuse. Both throw. */
interface Context extends Machine {
  /** Refuses values that do not fit together. */
  refuse: (names: readonly string[], problem: string, allowed: string) => never;
  /** Refuses one value. */
  refuseOne: (name: string, value: unknown, allowed: string) => never;
}

const CHECKS = [
  checkPorts,
  checkAuth,
  checkTools,
  checkNetwork,
  checkHealth,
  checkServe,
  checkTls,
  checkStore,
  checkHosts,
] as const;

/** Checks whether the values fit together and suit this machine and account. Passes each problem to `report`. */
export function checkTogether(config: Config, given: Layer, machine: Machine, report = throwProblem): void {
  const context: Context = {
    ...machine,
    refuse: (names, problem, allowed) => {
      throw conflict(names, problem, allowed, given);
    },
    refuseOne: (name, value, allowed) => {
      throw invalidValue(name, value, allowed, given.get(name)?.origin);
    },
  };
  for (const check of CHECKS) attempt(() => check(config, context), report);
}

function checkPorts({ ports, pool }: Config, context: Context): void {
  const { from, to } = ports;
  if (from > to) {
    const allowed = `a ports.from of ${to} or less, or a ports.to of ${from} or more`;
    context.refuse(["ports.from", "ports.to"], `ports.from is ${from}, which is more than ports.to, ${to}`, allowed);
  }
  checkPrivilege("ports.from", from, context);
  const size = to - from + 1;
  if (pool.servers <= size) return;
  const problem = `The port range ${from}-${to} has ${countOf(size, "port")} for ${countOf(pool.servers, "server")}`;
  context.refuse(["ports.from", "ports.to", "pool.servers"], problem, "at least one port for each server");
}

const FIRST_FREE_PORT = 1024;

function checkPrivilege(name: string, port: number, { uid, refuseOne }: Context): void {
  if (port === 0 || port >= FIRST_FREE_PORT || uid === undefined || uid === 0) return;
  refuseOne(name, port, `a port from ${FIRST_FREE_PORT} to 65535, because only root may use lower ports`);
}

/** Refuses more than one source of GitHub tokens. Users who sign on with GitHub bring their own. */
function checkAuth({ auth, identity }: Config, { refuse }: Context): void {
  const names = Object.entries(auth).flatMap(([part, value]) => (value === null ? [] : [`auth.${part}`]));
  if (names.length > 1) refuse(names, `${names.join(" and ")} are both set`, "one source for the token");
  if (identity.github.api === null || names.length === 0) return;
  const all = ["identity.github.api", ...names];
  const allowed = "one of them, because sessions of users who sign on with GitHub run with their own tokens";
  refuse(all, `${all.join(" and ")} are both set`, allowed);
}

/**
 * On shared servers, refuses tools that reach files if every use is approved, because such a tool reaches the histories
 * of all users.
 */
function checkTools({ isolation, session }: Config, { refuse }: Context): void {
  if (isolation !== "shared" || session.approve !== "all") return;
  const reaching = session.tools?.filter(reachesFiles) ?? [];
  if (reaching.length === 0) return;
  const tools = reaching.map((name) => quote(name)).join(", ");
  refuse(
    ["session.approve", "session.tools", "isolation"],
    `session.approve is "all", and session.tools has ${tools}, which reach every user's history on a shared server`,
    'session.approve "none", or session.tools with "custom:*" and tools that do not reach files',
  );
}

const HTTPS_PORT = 443;

/** Refuses network settings that contradict other settings, or with which no turn could reach a model. */
function checkNetwork({ sandbox, provider }: Config, { env, refuse }: Context): void {
  const { network, allow, mode } = sandbox;
  const restriction = `sandbox.network is "${network}"`;
  if (allow.length > 0 && network !== "allow-list") {
    const allowed = 'sandbox.network "allow-list", or no hosts in sandbox.allow';
    refuse(["sandbox.allow", "sandbox.network"], `sandbox.allow has hosts, but ${restriction}`, allowed);
  }
  if (network === "open" || network === "auto") return;
  if (mode === "none") {
    const problem = `${restriction}, which needs a sandbox, but sandbox.mode is "none"`;
    refuse(["sandbox.network", "sandbox.mode"], problem, 'another sandbox.mode, or sandbox.network "open"');
  }
  if (provider !== null || network === "public") return;
  const rules = network === "none" ? [] : allow.map(readNetworkRule).filter((rule) => rule !== null);
  const missing = gitHubHosts(env).filter(({ name, port }) => !rules.some((rule) => allowsName(rule, name, port)));
  if (missing.length === 0) return;
  const entries = missing.map(({ name, port }) => `"${name}${port === HTTPS_PORT ? "" : `:${port}`}"`).join(" and ");
  refuse(
    ["sandbox.network", "sandbox.allow", "provider"],
    `${restriction} and provider is null, so that servers could not reach GitHub's models`,
    `sandbox.network "allow-list" with ${entries} in sandbox.allow, or a provider`,
  );
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

function checkHealth({ health }: Config, { refuse }: Context): void {
  // With a longer timeout, the first missed probe alone would take longer than all allowed failures together.
  const limitMs = health.intervalMs * health.failures;
  if (health.timeoutMs <= limitMs) return;
  const allowed = `at most health.interval × health.failures, which is ${writeDuration(limitMs)}`;
  const names = ["health.timeout", "health.interval", "health.failures"];
  refuse(names, `health.timeout is ${writeDuration(health.timeoutMs)}`, allowed);
}

function checkServe({ serve }: Config, context: Context): void {
  for (const part of ["metrics", "http", "listen"] as const)
    checkPrivilege(`serve.${part}`, serve[part]?.port ?? 0, context);
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
    const allowed = `a different port for each${mayShare ? ", or the same host for both" : ""}`;
    const names = [`serve.${one}`, `serve.${other}`];
    context.refuse(names, `${names.join(" and ")} both use port ${a.port}`, allowed);
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

/** Refuses a certificate or a key without the other one, and `serve.tls.clientCa` without `serve.tls.cert`. */
function checkTls({ serve, host }: Config, { refuse }: Context): void {
  for (const [section, { cert, key }] of [
    ["serve", serve.tls],
    ["host", host.tls],
  ] as const) {
    if ((cert === null) === (key === null)) continue;
    const names = [`${section}.tls.cert`, `${section}.tls.key`];
    const [set, missing] = cert === null ? names.toReversed() : names;
    refuse(names, `${set} is set without ${missing}`, `${names.join(" and ")} together`);
  }
  if (serve.tls.clientCa === null || serve.tls.cert !== null) return;
  const names = ["serve.tls.clientCa", "serve.tls.cert"];
  refuse(names, names.join(" is set without "), "serve.tls.cert and serve.tls.key together");
}

/** The text after "Allowed:" in a message about a Redis without TLS. */
export const ALLOWED_PLAINTEXT =
  'rediss:// (TLS) for a Redis on another host. On a trusted network, "insecure": true allows plain text';

export function isPlaintext(url: string): boolean {
  const target = readRedisUrl(url);
  return target !== null && !target.tls && !isLoopback(target);
}

/** Refuses a Redis without TLS on another host, and a shared folder that one host has for itself. */
function checkStore({ store, insecure, storage }: Config, { refuse, refuseOne, stateRoot }: Context): void {
  if (store.kind === "redis" && !insecure && isPlaintext(store.url)) refuseOne("store", store.url, ALLOWED_PLAINTEXT);
  if (storage.shared === null) return;
  if (store.kind === "file")
    refuse(
      ["storage.shared", "store"],
      'storage.shared is set, but the store "file" belongs to one host',
      "a Redis store",
    );
  const shared = resolve(storage.shared);
  const isWithin = (path: string, folder: string) => path === folder || path.startsWith(folder.replace(/\/*$/, "/"));
  if (!isWithin(shared, stateRoot) && !isWithin(stateRoot, shared)) return;
  const allowed = `a folder that all hosts mount, neither in the state folder ${quote(stateRoot)} nor around it`;
  refuseOne("storage.shared", storage.shared, allowed);
}

/** Refuses an address at which other hosts cannot reach this one. At 0.0.0.0 and ::, a host reaches itself. */
function checkHosts({ host: { advertise } }: Config, { refuseOne }: Context): void {
  if (advertise === null) return;
  const { host, port } = advertise;
  if (port !== 0 && !/^[0.]+$/.test(host) && !/^[0:]+$/.test(host)) return;
  const allowed = 'the address at which other hosts reach this one, with a port other than 0, such as "10.0.0.1:4300"';
  refuseOne("host.advertise", `${host.includes(":") ? `[${host}]` : host}:${port}`, allowed);
}
