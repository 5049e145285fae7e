import { FleetError, quote, type Suggestion } from "../base/errors.js";
import { isLoopback, readRedisUrl, showRedisUrl } from "../base/values/network.js";
import type { Layer } from "../config/load/layers.js";
import type { Config } from "../config/schema.js";
import { isFile, NEW_STORE_KEY, type Settings, settingsOf } from "./settings.js";
import { memoryBytes } from "./sizing.js";

/** A configuration, and the values in it that are not defaults. */
export interface Loaded {
  config: Config;
  given: Layer;
}

/** The options of the command line for a deployment in containers. */
export interface DeployOptions {
  name: string;
  image: string;
  /** The number of hosts. Default: 1 with the file store, otherwise 2. */
  replicas?: number | undefined;
  /** Default: shared if the configuration sets `storage.shared`, otherwise local. */
  storage?: "local" | "shared" | undefined;
  /** The number of servers to plan for on each host. Default: `pool.servers` if isolation is shared, otherwise 20. */
  servers?: number | undefined;
  /** The number of sessions to plan for in the memory of each host. Default: 50. */
  sessions?: number | undefined;
}

/** The properties of an orchestrator. */
interface Orchestrator {
  /** Whether the password of Redis comes from a secret, which overrides the configuration. */
  secretPassword?: boolean;
  /** Whether it can start a Redis if the configuration does not name one that all hosts can reach. */
  startsRedis?: boolean;
  /** Whether to serve the HTTP API even if `serve.http` is not set. */
  http?: boolean;
}

/** Keys that the templates set for each host. */
const PER_HOST = ["host.name", "host.advertise", "storage.shared", "serve.listen", "serve.metrics"];
const HTTP_KEYS = ["serve.http", "http.origins"];
/**
 * The longest time that `serve` needs to stop, beyond `drain.timeout`, in milliseconds: closing the pool (one
 * store operation: 5 s), servers that another command is working on (10 s), asking a busy server one last time (0.5 s),
 * SIGTERM (5 s) and SIGKILL (5 s) of a server, and recording its end (one more store operation).
 */
const ENDING_MS = 5_000 + 10_000 + 500 + 5_000 + 5_000 + 5_000;

/** Returns the number of whole seconds after which a stopping `serve` may be killed. */
export function graceSecondsOf({ drain }: Config): number {
  return Math.ceil((drain.timeoutMs + ENDING_MS) / 1000);
}

/** Describes the fleet of this configuration as hosts in containers. Both orchestrators use it. */
export function describe({ config, given }: Loaded, options: DeployOptions, orchestrator: Orchestrator) {
  const url = config.store.kind === "redis" ? readRedisUrl(config.store.url) : null;
  const reachable = url !== null && !isLoopback(url);
  const ownRedis = !reachable && orchestrator.startsRedis === true && (url !== null || (options.replicas ?? 1) > 1);
  if (url !== null && !reachable && !ownRedis) {
    throw unfit(
      `store is ${quote(showRedisUrl(url))}. In a pod, this address is the pod itself, so the hosts would not share the store`,
      ["Set store to a Redis that all pods reach."],
    );
  }
  const hasRedis = reachable || ownRedis;
  const { serve, http, isolation, pool } = config;
  const servesHttp = serve.http !== null || orchestrator.http === true;
  const withTls = serve.tls.cert !== null;
  const settings = settingsOf(config, given, {
    without: [...PER_HOST, ...(servesHttp ? HTTP_KEYS : []), "runtime.path", ...(ownRedis ? ["storeOptions"] : [])],
    // The front door listens on all addresses of its container. The orchestrator's network protects it and the
    // orchestrator's own Redis.
    with: {
      ...(ownRedis || !withTls ? { insecure: true } : {}),
      ...(ownRedis ? { store: "redis://redis:6379/0" } : {}),
    },
    secretPassword: ownRedis || orchestrator.secretPassword === true,
    secretStoreKey: hasRedis,
    moveFiles: true,
  });
  const capacity = {
    servers: options.servers ?? (isolation === "shared" ? pool.servers : 20),
    sessions: options.sessions ?? 50,
  };
  return {
    capacity,
    settings,
    hasRedis,
    /** The address of a Redis that is not the orchestrator's own. */
    redis: ownRedis ? null : url,
    origins: http.origins,
    /** The values of the templates. */
    view: {
      name: options.name,
      image: options.image,
      replicas: replicasOf(options, hasRedis),
      shared: (options.storage ?? (given.has("storage.shared") ? "shared" : "local")) === "shared",
      ownRedis,
      http: servesHttp,
      tls: withTls,
      scheme: withTls ? "https" : "http",
      graceSeconds: graceSecondsOf(config),
      memoryMib: memoryBytes(capacity) / (1024 * 1024),
      ...noticesOf(config, given, settings),
    },
  };
}

function replicasOf({ replicas }: DeployOptions, hasRedis: boolean): number {
  if (hasRedis || replicas === undefined) return replicas ?? (hasRedis ? 2 : 1);
  if (replicas === 1) return 1;
  const message = `--replicas ${replicas} needs a store in Redis, but the store is "file", which works on one host only.`;
  throw new FleetError("FLEET_USAGE_INVALID", message, {
    suggestions: [
      'Set "store" in the configuration file to a Redis that all hosts reach, such as "redis://HOST:6379/0".',
      "copilotfleet deploy kubernetes --replicas 1 # without Redis",
    ],
  });
}

/** The services that hosts must reach, except Redis, as URLs: GitHub, the model and the identity providers. */
export function servicesOf({ provider, auth, identity }: Config): URL[] {
  const hasToken = Object.values(auth).some((source) => source !== null);
  const services = [
    hasToken || provider === null ? "https://api.github.com" : null,
    provider === null || provider.type === "echo" ? null : provider.baseUrl,
    ...identity.jwt.map(({ issuer, jwks }) => jwks ?? issuer),
    identity.github.api,
  ];
  return services.flatMap((at) => (at === null || isFile(at) ? [] : [new URL(at)]));
}

/** The host of a URL, without the brackets around an IPv6 address. */
export function hostOf({ hostname }: URL): string {
  return hostname.replace(/^\[|\]$/g, "");
}

/** The values of `containers.txt`. */
function noticesOf({ provider, auth, runtime }: Config, given: Layer, settings: Settings) {
  return {
    newStoreKey: settings.secrets.some(({ name }) => name === NEW_STORE_KEY),
    runtimePath: given.has("runtime.path"),
    tokenCommand: auth.githubToken?.from === "command",
    userVariable: settings.secrets.find(({ perUser, source }) => perUser && source === null)?.name,
    noModel: provider === null && Object.values(auth).every((source) => source === null),
    localModel:
      provider !== null && provider.type !== "echo" && isLoopback({ host: hostOf(new URL(provider.baseUrl)) }),
    runtimeArgs: runtime.args.length > 0,
    weakened: weakened(settings),
  };
}

/** Values that are weaker than the defaults, each with what it allows. */
const WEAKER: Readonly<Record<string, readonly [value: unknown, effect: string]>> = {
  insecure: [
    true,
    "clients, hosts and Redis may be connected without TLS, so their network can read and change tokens, conversations and the state of the fleet. With serve.tls and an encrypted Redis, it is not necessary",
  ],
  "session.approve": ["all", "all tool calls of a model run, and nobody is asked"],
  "session.host": ["owner", "users reach files and start programs on their own servers"],
  "sandbox.mode": ["none", "agents can read and change whatever the fleet's account can"],
  "sandbox.network": ["open", "agents reach every address that the host reaches"],
};

/** The settings that are weaker than their defaults, for the reader of the output. */
export function weakened({ values }: Settings) {
  return Object.entries(WEAKER).flatMap(([key, [weak, effect]]) =>
    values.get(key)?.value === weak ? [{ setting: `${key} ${JSON.stringify(weak)}`, effect }] : [],
  );
}

/** Creates the error for a flag whose value is not allowed, or does not fit the other settings. Exit code 2. */
export function badFlag(flag: string, value: unknown, allowed: string): FleetError {
  return new FleetError("FLEET_USAGE_INVALID", `--${flag} is ${quote(String(value))}. Allowed: ${allowed}`);
}

/** Creates the error for a configuration that cannot be deployed to the chosen target. Exit code 3. */
export function unfit(message: string, suggestions: Suggestion[]): FleetError {
  return new FleetError("FLEET_CONFIG_INVALID", message, { suggestions });
}

/**
 * Refuses an address that other machines can reach if nothing encrypts the connections. @param harm the consequence,
 * for the message
 */
export function checkExposed(
  key: "listen" | "http",
  { serve, insecure }: Pick<Config, "serve" | "insecure">,
  harm: string,
): void {
  const address = serve[key];
  if (address === null || isLoopback(address) || serve.tls.cert !== null || insecure) return;
  const where = `${address.host}:${address.port}`;
  throw unfit(`serve.${key} is ${quote(where)}, which other machines can reach, and serve.tls is not set, ${harm}`, [
    "Set serve.tls.cert and serve.tls.key to the files of a certificate.",
    "Set insecure to true if only trusted machines can reach this network, or if a proxy adds TLS.",
  ]);
}

/**
 * Refuses a sandbox that needs namespaces where they are forbidden, because the fleet would not start a server there.
 *
 * @param where the thing that forbids namespaces, for the message
 */
export function checkSandbox({ sandbox: { mode, network } }: Config, where: string): void {
  if (mode === "bwrap") {
    throw unfit(`sandbox.mode is "bwrap", which needs namespaces, but ${where} forbids them`, [
      'Set sandbox.mode to "auto" for the best sandbox that works there.',
    ]);
  }
  if (network !== "open" && network !== "auto") {
    throw unfit(`sandbox.network is ${quote(network)}, which needs namespaces, but ${where} forbids them`, [
      'Set sandbox.network to "open" there, and restrict the network of the whole host.',
    ]);
  }
}
