import * as v from "valibot";
import type { NamedSource } from "../base/server.js";
import { identity } from "./identity.js";
import { limits, processors } from "./limits.js";
import * as rules from "./rules.js";
import * as lists from "./rules.js";
import { secret } from "./secret.js";

const githubApp = v.pipe(
  v.strictObject({
    appId: v.optional(v.nullable(rules.gitHubId()), null),
    installationId: v.optional(v.nullable(rules.gitHubId()), null),
    privateKey: v.optional(v.nullable(secret('{"file": "/run/secrets/github-app.pem"}')), null),
  }),
  v.rawTransform(({ dataset, addIssue, NEVER }) => {
    const { appId, installationId, privateKey } = dataset.value;
    if (appId !== null && installationId !== null && privateKey !== null) return { appId, installationId, privateKey };
    const [missing] = Object.entries(dataset.value).find(([, value]) => value === null) ?? [""];
    if (Object.values(dataset.value).every((value) => value === null)) return null;
    const item = { type: "object", origin: "value", input: dataset.value, key: missing, value: null } as const;
    addIssue({ message: "a value, because other keys of auth.githubApp are set", input: null, path: [item] });
    return NEVER;
  }),
);

/** The sources of GitHub tokens. */
const auth = v.strictObject({
  githubToken: v.optional(v.nullable(secret('{"env": "GITHUB_TOKEN_{user}"}', true)), null),
  // Null if no key of the App is set. If only some are set, the configuration is refused.
  githubApp: v.optional(githubApp, {}),
});

/** The audit log: what people and the fleet do. */
const events = v.pipe(
  v.strictObject({
    retention: v.optional(rules.age(), "90d"),
  }),
  v.transform(({ retention }) => ({ retentionMs: retention })),
);

const file = (name: string) => v.optional(v.nullable(rules.file(`/etc/copilotfleet/${name}`)), null);

/** The certificate of the front door, and the authorities of its clients. */
const doorTls = v.strictObject({ cert: file("tls.crt"), key: file("tls.key"), clientCa: file("ca.crt") });

/** The certificate that this host shows to other front doors, and the authorities of those doors. */
const hostTls = v.strictObject({ cert: file("host.crt"), key: file("host.key"), ca: file("ca.crt") });

const storeOptions = v.strictObject({
  // The key that signs the records in Redis. If null, the file `store-key` in the state folder.
  key: v.optional(v.nullable(secret('{"file": "/run/secrets/store-key"}')), null),
  // The password of Redis.
  password: v.optional(v.nullable(secret('{"env": "REDIS_PASSWORD"}')), null),
});

/** Settings of this host, for a fleet of several hosts that share a Redis. */
const host = v.pipe(
  v.strictObject({
    // If null, the host keeps its previous name or takes the machine's name.
    name: v.optional(v.nullable(rules.hostName()), null),
    // The address at which other hosts reach the front door of this host. If null, the address at which the door
    // listens.
    advertise: v.optional(v.nullable(rules.advertised()), null),
    // The certificate with which this host identifies itself to other front doors, and the authorities with which it
    // verifies theirs. If `ca` is null, it trusts the authorities that Node.js trusts.
    tls: v.optional(hostTls, {}),
    // How long after this host's last heartbeat the other hosts consider it dead, and take over its users and sessions.
    ttl: v.optional(rules.hostTtl(), "15s"),
  }),
  v.transform(({ ttl, ...rest }) => ({ ...rest, ttlMs: ttl })),
);

const storage = v.strictObject({
  // A folder that all hosts mount, for the state of sessions. If null, each host stores the state on its own disk.
  shared: v.optional(v.nullable(rules.folder()), null),
});

/** The ledger of turns and model requests. */
const usage = v.pipe(
  v.strictObject({ retention: v.optional(rules.age(), "400d") }),
  v.transform(({ retention }) => ({ retentionMs: retention })),
);

/** The prices of a million tokens of a model, in any currency. */
interface Price {
  input: number;
  /** For input tokens that the service read from its cache. */
  cached: number;
  output: number;
}

export type Prices = Readonly<Record<string, Price>>;

const ALLOWED =
  'an object with the names of models, each with its prices, such as {"gpt-5": {"input": 1.25, "cached": 0.125, "output": 10}}';
const MOST = 1_000_000;
const ALLOWED_PRICE = `a number from 0 to ${MOST}, which is the price of a million tokens`;

const amount = () => v.pipe(v.number(ALLOWED_PRICE), v.minValue(0, ALLOWED_PRICE), v.maxValue(MOST, ALLOWED_PRICE));

const price = v.pipe(
  v.strictObject({ input: amount(), cached: v.optional(amount()), output: amount() }, ({ expected }) =>
    expected === "never" ? "the keys input, cached and output" : ALLOWED,
  ),
  // Without a price of their own, cached tokens cost as much as other input tokens.
  v.transform(({ cached, ...rest }): Price => ({ ...rest, cached: cached ?? rest.input })),
);

const prices = v.pipe(
  v.record(v.string(), price, ALLOWED),
  v.metadata({ allowed: ALLOWED, json: true, kind: "object" }),
);

/**
 * Every key of the configuration with its default, as in the public contract. The output is resolved: durations are in
 * milliseconds, sizes are in bytes, and addresses and the store are objects. Resolved names contain the unit.
 */

const ports = v.strictObject({ from: v.optional(rules.port(), 5000), to: v.optional(rules.port(), 5999) });

const pool = v.pipe(
  v.strictObject({
    servers: v.optional(rules.count(), 1),
    strategy: v.optional(rules.choice(["sticky", "round-robin", "least-loaded"]), "sticky"),
    // After which idle time `serve` stops a user's own server.
    idleTimeout: v.optional(v.nullable(rules.wait()), null),
  }),
  v.transform(({ idleTimeout, ...rest }) => ({ ...rest, idleTimeoutMs: idleTimeout })),
);

const runtime = v.strictObject({
  path: v.optional(v.nullable(rules.program()), null),
  args: v.optional(lists.runtimeArgs(), []),
  env: v.optional(lists.runtimeEnv(), ["HTTPS_PROXY"]),
});

/** A model service that uses one of the known protocols. */
export interface RemoteProvider {
  type: "openai" | "azure" | "anthropic";
  baseUrl: string;
  /** Null for a service that needs no key. */
  apiKey: NamedSource | null;
  /** Whether the key goes into the header `Authorization: Bearer`. With the type "openai", it always does. */
  bearer: boolean;
  /** Only the types "openai" and "azure" use this. */
  wireApi: "completions" | "responses";
  prices?: Prices | null;
}

/** A model service, or the built-in echo model, which needs no network. */
export type Provider = RemoteProvider | { type: "echo" };

const providerKeys = v.strictObject({
  type: v.optional(rules.choice(["openai", "azure", "anthropic", "echo"]), "openai"),
  baseUrl: v.optional(v.nullable(rules.httpUrl()), null),
  apiKey: v.optional(v.nullable(secret('{"env": "OPENAI_API_KEY"}')), null),
  bearer: v.optional(rules.flag(), false),
  wireApi: v.optional(rules.choice(["completions", "responses"]), "completions"),
  prices: v.optional(v.nullable(prices), null),
});

const provider = v.pipe(
  providerKeys,
  v.rawTransform<v.InferOutput<typeof providerKeys>, Provider>(({ dataset, addIssue, NEVER }) => {
    const { type, baseUrl, ...rest } = dataset.value;
    const refuse = (allowed: string) => {
      const item = { type: "object", origin: "value", input: dataset.value, key: "baseUrl", value: baseUrl } as const;
      addIssue({ message: allowed, input: baseUrl, path: [item] });
      return NEVER;
    };
    if (type === "echo") {
      return baseUrl === null
        ? { type }
        : refuse('no value when provider.type is "echo", because the echo model is built in');
    }
    return baseUrl === null
      ? refuse(`the URL of a model service, because provider.type is "${type}"`)
      : { type, baseUrl, ...rest };
  }),
);

const session = v.pipe(
  v.strictObject({
    // If null, the runtime chooses a model. The default depends on the provider: see `withModel`.
    model: v.optional(v.nullable(rules.modelName())),
    // Null: sessions are kept for ever.
    ttl: v.optional(v.nullable(rules.age()), "30d"),
    maxActive: v.optional(rules.count(), 50),
    // The AI credits of GitHub that one session may use. Null: unlimited. The runtime accepts no less than 30.
    maxCredits: v.optional(v.nullable(rules.count({ example: 1000 }, 30)), null),
    approve: v.optional(rules.choice(["none", "ask", "all"]), "none"),
    // How long a permission or a question waits for the user's answer over HTTP.
    answerTimeout: v.optional(rules.wait(), "5m"),
    // Whether a user's clients may reach files and start programs on the user's own server. `auto` depends on the
    // server's sandbox.
    host: v.optional(rules.choice(["owner", "none", "auto"]), "auto"),
    // Null: all tools of the runtime on a user's own server, and none on a shared one.
    tools: v.optional(v.nullable(lists.toolNames()), null),
    infinite: v.optional(
      v.strictObject({
        enabled: v.optional(rules.flag(), true),
        backgroundCompactionThreshold: v.optional(rules.share(), 0.8),
      }),
      {},
    ),
  }),
  v.transform(({ ttl, answerTimeout, ...rest }) => ({ ...rest, ttlMs: ttl, answerTimeoutMs: answerTimeout })),
);

const sandbox = v.pipe(
  v.strictObject({
    mode: v.optional(rules.choice(["auto", "landlock", "bwrap", "none"]), "auto"),
    // Further folders that servers can reach.
    binds: v.optional(lists.binds(), []),
    // Whether servers reach every address, all public ones, the hosts in `allow`, or none. `auto`: the public ones where
    // that works, or else every address.
    network: v.optional(rules.choice(["auto", "public", "allow-list", "none", "open"]), "auto"),
    allow: v.optional(lists.networkRules(), []),
    // Whether servers may make Unix sockets even if the sandbox cannot hide those of other programs.
    unixSockets: v.optional(rules.flag(), false),
    // The limits of each server, together with everything that it starts. Null: unlimited. Below the lowest allowed
    // values, no server would start.
    memory: v.optional(v.nullable(rules.sizeFrom("64mb", "1gb")), null),
    processes: v.optional(v.nullable(rules.count({ example: 200 }, 32)), null),
    openFiles: v.optional(v.nullable(rules.count({ example: 1024 }, 64)), null),
    cpu: v.optional(v.nullable(processors()), null),
    disk: v.optional(v.nullable(rules.sizeFrom("1mb", "2gb")), null),
  }),
  v.transform(({ mode, binds, network, allow, unixSockets, ...limits }) => ({
    ...{ mode, binds, network, allow, unixSockets },
    limits,
  })),
);

const lock = v.pipe(
  v.strictObject({ ttl: v.optional(rules.leaseTtl(), "300s") }),
  v.transform(({ ttl }) => ({ ttlMs: ttl })),
);

/** The default of `health.timeout`, unless the interval is shorter. */
export const LONGEST_DEFAULT_PROBE_MS = 2000;

const health = v.pipe(
  v.strictObject({
    interval: v.optional(rules.wait(), "5s"),
    timeout: v.optional(rules.wait({ example: "2s" })),
    failures: v.optional(rules.count(), 3),
    restarts: v.optional(rules.count(), 5),
    stalledTurn: v.optional(rules.wait(), "10m"),
  }),
  // The default of the timeout is never longer than the interval.
  v.transform(({ interval, timeout, stalledTurn, ...rest }) => ({
    ...rest,
    intervalMs: interval,
    timeoutMs: timeout ?? Math.min(LONGEST_DEFAULT_PROBE_MS, interval),
    stalledTurnMs: stalledTurn,
  })),
);

const recycle = v.pipe(
  v.strictObject({
    maxMemory: v.optional(v.nullable(rules.size()), "1gb"),
    maxAge: v.optional(v.nullable(rules.age()), "24h"),
  }),
  v.transform(({ maxMemory, maxAge }) => ({ maxMemoryBytes: maxMemory, maxAgeMs: maxAge })),
);

const drain = v.pipe(
  v.strictObject({ timeout: v.optional(rules.wait(), "30s") }),
  v.transform(({ timeout }) => ({ timeoutMs: timeout })),
);

const serve = v.pipe(
  v.strictObject({
    // If null, there is no front door.
    listen: v.optional(v.nullable(rules.address()), "127.0.0.1:4300"),
    // The address of the HTTP API. If null, there is none.
    http: v.optional(v.nullable(rules.address(4380)), null),
    // Whether the log gets a line for each request at the front door and at the HTTP API, without its content.
    accessLog: v.optional(rules.flag(), false),
    metrics: v.optional(rules.address(), "127.0.0.1:9464"),
    // The largest message that a client may send to the front door.
    maxFrame: v.optional(rules.frameSize(), "8mb"),
    // Whether each connection to the front door begins with a header (PROXY protocol v2) in which a proxy names the
    // client.
    proxyProtocol: v.optional(rules.flag(), false),
    // With a certificate, the front door speaks TLS only. With `clientCa`, clients need a certificate, too.
    tls: v.optional(doorTls, {}),
    // How long a prompt may wait at the front door while other users use its session.
    turnWait: v.optional(rules.wait(), "30s"),
  }),
  v.transform(({ maxFrame, turnWait, ...rest }) => ({
    ...rest,
    maxFrameBytes: maxFrame,
    turnWaitMs: turnWait,
  })),
);

/**
 * `origins`: pages from these origins may use the HTTP API. The header `Host` of a request may name their hosts.
 * `proxies`: the proxies in front of the HTTP API.
 */
const http = v.strictObject({ origins: v.optional(lists.origins(), []), proxies: v.optional(lists.proxies(), []) });

const keys = v.strictObject({
  isolation: v.optional(rules.choice(["per-user", "shared"]), "per-user"),
  ports: v.optional(ports, {}),
  pool: v.optional(pool, {}),
  runtime: v.optional(runtime, {}),
  auth: v.optional(auth, {}),
  provider: v.optional(v.nullable(provider), null),
  session: v.optional(session, {}),
  sandbox: v.optional(sandbox, {}),
  identity: v.optional(identity, {}),
  lock: v.optional(lock, {}),
  health: v.optional(health, {}),
  recycle: v.optional(recycle, {}),
  drain: v.optional(drain, {}),
  serve: v.optional(serve, {}),
  http: v.optional(http, {}),
  limits: v.optional(limits, {}),
  events: v.optional(events, {}),
  usage: v.optional(usage, {}),
  store: v.optional(rules.store(), "file"),
  storeOptions: v.optional(storeOptions, {}),
  host: v.optional(host, {}),
  storage: v.optional(storage, {}),
  // Allows connections to other machines without TLS: clients, other hosts and Redis.
  insecure: v.optional(rules.flag(), false),
  // The user for commands that need a user and get none. The library does not read this key.
  user: v.optional(v.nullable(rules.userId()), null),
});

export const DEFAULT_MODEL = "gpt-5";

/**
 * Fills in the model if none is given. A provider needs one. Without a provider, the default is null, and the runtime
 * chooses one of GitHub's models, because these differ from account to account.
 */
function withModel({ session, ...rest }: v.InferOutput<typeof keys>) {
  const { model = rest.provider === null ? null : DEFAULT_MODEL, ...others } = session;
  return { ...rest, session: { ...others, model } };
}

export const ConfigSchema = v.pipe(keys, v.transform(withModel));

/** The configuration as a file contains it. */
export type ConfigInput = v.InferInput<typeof ConfigSchema>;

/** The complete and resolved configuration. */
export type Config = v.InferOutput<typeof ConfigSchema>;
