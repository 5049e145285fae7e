import type { Layer } from "../config/load/layers.js";
import type { Config } from "../config/schema.js";
import { isLoopback, readRedisUrl, showRedisUrl } from "../config/values/redis-url.js";
import { FleetError, quote } from "../errors.js";
import { stopGraceSeconds } from "./grace.js";
import { badFlag, unfit } from "./problem.js";
import { isFile, NEW_STORE_KEY, type Settings, settingsOf } from "./settings.js";
import type { Capacity } from "./sizing.js";
import { weakened, weakenedNotices } from "./weakened.js";

export type StorageKind = "local" | "shared";

/** The options of the command line for a deployment in containers. */
export interface DeployOptions {
  name: string;
  image: string;
  /** The number of hosts. Default: 1 with the file store, otherwise 2. */
  replicas?: number | undefined;
  /** The highest number of hosts. Default: twice `replicas`. */
  maxReplicas?: number | undefined;
  /** Default: shared if the configuration sets `storage.shared`, otherwise local. */
  storage?: StorageKind | undefined;
  /** The number of servers to plan for on each host. Default: `pool.servers` if isolation is shared, otherwise 20. */
  servers?: number | undefined;
  /** The number of sessions to plan for in the memory of each host. Default: 50. */
  sessions?: number | undefined;
  /** Whether the Redis URL comes from a secret, which overrides the configuration. */
  secretStore: boolean;
  /** Whether to serve the HTTP API even if `serve.http` is not set. */
  http?: boolean | undefined;
}

/** A fleet of hosts in containers, described independently of the orchestrator. All renderers use it. */
export type Deployment = ReturnType<typeof describe>;

/** Keys that the orchestrator sets for each host. */
export const PER_HOST = ["host.name", "host.advertise", "storage.shared", "serve.listen", "serve.metrics"];
/** Keys of the HTTP API that the orchestrator sets. */
const HTTP_KEYS = ["serve.http", "http.origins"];
const USUAL_SERVERS = 20;
const USUAL_SESSIONS = 50;
const HTTPS_PORT = 443;
const REDIS_PORT = 6379;

/**
 * Describes the fleet of this configuration as hosts in containers.
 *
 * @param startsRedis whether the orchestrator can start a Redis if the configuration does not name one that all hosts can
 * reach
 */
export function describe(
  { config, given }: { config: Config; given: Layer },
  options: DeployOptions,
  startsRedis = false,
) {
  const url = config.store.kind === "redis" ? readRedisUrl(config.store.url) : null;
  const reachable = options.secretStore || (url !== null && !isLoopback(url));
  const own = !reachable && startsRedis && (url !== null || (options.replicas ?? 1) > 1);
  if (url !== null && !reachable && !own) {
    throw unfit(
      `store is ${quote(showRedisUrl(url))}. In a pod, this address is the pod itself, so the hosts would not share the store`,
      ["Set store to a Redis that all pods reach.", "Give its URL in a Secret, with --redis-secret NAME."],
    );
  }
  const hasRedis = reachable || own;
  const replicas = replicasOf(options, hasRedis);
  const http = httpOf(config, options);
  const storage = options.storage ?? (given.has("storage.shared") ? "shared" : "local");
  const settings = settingsOf(config, given, {
    without: [...PER_HOST, ...(http === null ? [] : HTTP_KEYS), "runtime.path", ...(own ? ["storeOptions"] : [])],
    with: {
      // The front door listens on all addresses of its container. The orchestrator's network protects it and the
      // orchestrator's own Redis.
      ...(own || config.serve.tls.cert === null ? { insecure: true } : {}),
    },
    // The URL of the orchestrator's own Redis contains a password.
    secretStore: options.secretStore || own,
    secretStoreKey: hasRedis,
    moveFiles: true,
  });
  return {
    name: options.name,
    image: options.image,
    replicas,
    maxReplicas: hasRedis ? maxReplicasOf(options, replicas) : 1,
    storage,
    capacity: capacityOf(options, config),
    settings,
    /** Null if the hosts do not serve the HTTP API. */
    http,
    /** Whether the orchestrator starts a Redis. */
    ownRedis: own,
    /** Null if the fleet uses the file store. */
    redis: hasRedis ? redisOf(own || options.secretStore ? null : url) : null,
    stopGraceSeconds: stopGraceSeconds(config.drain.timeoutMs),
    /** The services that hosts must reach, except Redis. */
    services: servicesOf(config),
    /** Sentences for the reader of the manifests: facts to know and things to do. */
    notices: noticesOf(config, given, settings),
  };
}

function replicasOf({ replicas }: DeployOptions, hasRedis: boolean): number {
  if (hasRedis || replicas === undefined) return replicas ?? (hasRedis ? 2 : 1);
  if (replicas === 1) return 1;
  const message = `--replicas ${replicas} needs a store in Redis, but the store is "file", which works on one host only.`;
  throw new FleetError("FLEET_USAGE_INVALID", message, {
    suggestions: [
      `copilotfleet deploy kubernetes --replicas ${replicas} --redis-secret NAME # if a Kubernetes Secret contains the Redis URL`,
      'Or set "store" in the configuration file to a Redis that all hosts reach, such as "redis://HOST:6379/0".',
      "copilotfleet deploy kubernetes --replicas 1 # without Redis",
    ],
  });
}

function maxReplicasOf({ maxReplicas }: DeployOptions, replicas: number): number {
  if (maxReplicas === undefined) return 2 * replicas;
  if (maxReplicas >= replicas) return maxReplicas;
  throw badFlag("max-replicas", maxReplicas, `at least the number of --replicas, which is ${replicas}`);
}

function capacityOf({ servers, sessions }: DeployOptions, config: Config): Capacity {
  const usual = config.isolation === "shared" ? config.pool.servers : USUAL_SERVERS;
  return { servers: servers ?? usual, sessions: sessions ?? USUAL_SESSIONS };
}

function httpOf({ serve, http }: Config, options: DeployOptions) {
  if (serve.http === null && options.http !== true) return null;
  const scheme: "http" | "https" = serve.tls.cert === null ? "http" : "https";
  return { scheme, origins: http.origins, longestBody: serve.maxFrameBytes };
}

/** A TCP service. The host is a name or an address; null if it is not known. */
export interface Service {
  host: string | null;
  port: number;
}

function redisOf(url: { host: string; port: number } | null): Service {
  return url === null ? { host: null, port: REDIS_PORT } : { host: url.host, port: url.port };
}

function servicesOf({ provider, auth, identity }: Config): Service[] {
  const hasToken = Object.values(auth).some((source) => source !== null);
  const github = hasToken || provider === null ? [{ host: "api.github.com", port: HTTPS_PORT }] : [];
  const signOn = [
    ...identity.jwt.map(({ issuer, jwks }) => jwks ?? issuer),
    ...(identity.github.api === null ? [] : [identity.github.api]),
  ];
  const model = provider === null || provider.type === "echo" ? [] : [provider.baseUrl];
  return [...github, ...[...model, ...signOn.filter((at) => !isFile(at))].map(serviceAt)];
}

function serviceAt(url: string): Service {
  const { hostname, port, protocol } = new URL(url);
  const usual = protocol === "https:" ? HTTPS_PORT : 80;
  return { host: hostname.replace(/^\[|\]$/g, ""), port: port === "" ? usual : Number(port) };
}

function noticesOf(config: Config, given: Layer, settings: Settings): string[] {
  const notices: string[] = [];
  const { provider, auth, runtime } = config;
  const perUser = settings.secrets.find((secret) => secret.perUser);
  const storeKey = settings.secrets.find(({ name }) => name === NEW_STORE_KEY);
  if (storeKey !== undefined)
    notices.push(
      `${NEW_STORE_KEY} is the key that signs the records in Redis, the same for all hosts: 64 random hex digits.`,
    );
  if (given.has("runtime.path"))
    notices.push("runtime.path is left out, because it is a path on this machine. The image's own runtime is used.");
  if (auth.githubTokenCommand !== null)
    notices.push(
      "auth.githubTokenCommand runs inside the container, so the image must contain the programs that it calls.",
    );
  if (perUser?.source === null)
    notices.push(`In place of auth.githubTokenEnv, there is a file ${quote(perUser.name)} for each user's token.`);
  if (provider === null && Object.values(auth).every((source) => source === null))
    notices.push("Neither a provider nor a GitHub token is configured: sessions have no model.");
  if (provider !== null && provider.type !== "echo" && isThisMachine(provider.baseUrl))
    notices.push("provider.baseUrl is an address of this machine. In a container, it means the container itself.");
  if (runtime.args.length > 0)
    notices.push("runtime.args are passed on unchanged. Paths in them are paths in the image.");
  notices.push(
    weakened(
      "serve.listen and serve.metrics at 0.0.0.0",
      "whoever reaches the network of the containers reaches the front door, which needs a token, and the metrics, which need none",
    ),
    ...weakenedNotices(settings),
  );
  return notices;
}

function isThisMachine(url: string): boolean {
  return isLoopback({ host: new URL(url).hostname.replace(/^\[|\]$/g, "") });
}
