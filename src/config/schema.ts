import * as v from "valibot";
import { auth } from "./auth.js";
import { identity } from "./identity.js";
import { limits, processors } from "./limits.js";
import * as lists from "./list-rules.js";
import * as rules from "./rules.js";
import { events } from "./sections/logs.js";
import { host, storage, storeOptions } from "./sections/state.js";
import { type Prices, prices, usage } from "./sections/usage.js";
import { doorTls } from "./tls-keys.js";

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
  /**
   * The variable, the file or the command with the key. At most one is set; none is set for a service that needs no
   * key.
   */
  apiKeyEnv: string | null;
  apiKeyFile: string | null;
  apiKeyCommand: string | null;
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
  apiKeyEnv: v.optional(v.nullable(rules.variable()), null),
  apiKeyFile: v.optional(v.nullable(rules.file()), null),
  apiKeyCommand: v.optional(v.nullable(rules.command("pass show openai/key")), null),
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
