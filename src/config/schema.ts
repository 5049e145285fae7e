import * as v from "valibot";
import { limits } from "./limits.js";
import {
  address,
  age,
  choice,
  command,
  count,
  countOrNone,
  flag,
  frameSize,
  hostName,
  hostTtl,
  httpUrl,
  leaseTtl,
  modelName,
  path,
  port,
  runtimeArgs,
  runtimeEnv,
  share,
  size,
  store,
  toolNames,
  userVariable,
  variable,
  wait,
} from "./rules.js";

/**
 * Every key of the configuration with its default, as in the public contract. The output is resolved: durations are in
 * milliseconds, sizes are in bytes, and addresses and the store are objects. Resolved names contain the unit.
 */

const ports = v.strictObject({ from: v.optional(port(), 5000), to: v.optional(port(), 5999) });

const pool = v.pipe(
  v.strictObject({
    servers: v.optional(count(), 1),
    strategy: v.optional(choice(["sticky", "round-robin", "least-loaded"]), "sticky"),
    // For `serve`: the number of shared servers to keep running in advance, and the idle time after which a user's own
    // server is stopped.
    warm: v.optional(countOrNone(), 0),
    idleTimeout: v.optional(v.nullable(wait()), null),
  }),
  v.transform(({ idleTimeout, ...rest }) => ({ ...rest, idleTimeoutMs: idleTimeout })),
);

const runtime = v.pipe(
  v.strictObject({
    path: v.optional(v.nullable(path("with-slash")), null),
    args: v.optional(runtimeArgs(), []),
    env: v.optional(runtimeEnv(), ["HTTPS_PROXY"]),
    idleTimeout: v.optional(v.nullable(age()), null),
  }),
  v.transform(({ idleTimeout, ...rest }) => ({ ...rest, idleTimeoutMs: idleTimeout })),
);

const auth = v.strictObject({
  githubTokenEnv: v.optional(v.nullable(userVariable()), null),
  githubTokenFile: v.optional(v.nullable(path("always")), null),
  githubTokenCommand: v.optional(v.nullable(command()), null),
});

/** A model service that uses one of the known protocols. */
export interface RemoteProvider {
  type: "openai" | "azure" | "anthropic";
  baseUrl: string;
  /** The variable that contains the key; null for services that do not need one. */
  apiKeyEnv: string | null;
  /** Only "openai" and "azure" use it. */
  wireApi: "completions" | "responses";
}

/** The built-in echo model, which needs no network. */
interface EchoProvider {
  type: "echo";
}

export type Provider = RemoteProvider | EchoProvider;

const providerKeys = v.strictObject({
  type: v.optional(choice(["openai", "azure", "anthropic", "echo"]), "openai"),
  baseUrl: v.optional(v.nullable(httpUrl()), null),
  apiKeyEnv: v.optional(v.nullable(variable()), null),
  wireApi: v.optional(choice(["completions", "responses"]), "completions"),
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
    // If null, the runtime chooses. The default depends on the provider: see `withModel`.
    model: v.optional(v.nullable(modelName())),
    ttl: v.optional(age(), "24h"),
    maxActive: v.optional(count(), 50),
    approve: v.optional(choice(["none", "ask", "all"]), "none"),
    // Whether a user's clients may reach the disk and start programs of the user's own server. Auto: only inside a
    // sandbox.
    host: v.optional(choice(["owner", "none", "auto"]), "auto"),
    // Null: all tools of the runtime on a user's own server, and none on a shared one.
    tools: v.optional(v.nullable(toolNames()), null),
    infinite: v.optional(
      v.strictObject({
        enabled: v.optional(flag(), true),
        backgroundCompactionThreshold: v.optional(share(), 0.8),
      }),
      {},
    ),
  }),
  v.transform(({ ttl, ...rest }) => ({ ...rest, ttlMs: ttl })),
);

const lock = v.pipe(
  v.strictObject({ ttl: v.optional(leaseTtl(), "300s") }),
  v.transform(({ ttl }) => ({ ttlMs: ttl })),
);

const health = v.pipe(
  v.strictObject({
    interval: v.optional(wait(), "5s"),
    timeout: v.optional(wait()),
    failures: v.optional(count(), 3),
    // Whether to check, in addition to the ping, that a session can be created.
    session: v.optional(flag(), false),
    startup: v.optional(wait(), "30s"),
    restarts: v.optional(count(), 5),
    backoff: v.optional(wait(), "1s"),
    stable: v.optional(wait(), "60s"),
    stalledTurn: v.optional(wait(), "10m"),
  }),
  // If only the interval is set, and it is short, the timeout is shortened to fit.
  v.transform(({ interval, timeout, failures, session, startup, restarts, backoff, stable, stalledTurn }) => ({
    intervalMs: interval,
    timeoutMs: timeout ?? Math.min(2000, interval),
    failures,
    session,
    startupMs: startup,
    restarts,
    backoffMs: backoff,
    stableMs: stable,
    stalledTurnMs: stalledTurn,
  })),
);

const recycle = v.pipe(
  v.strictObject({
    maxMemory: v.optional(v.nullable(size()), "1gb"),
    maxAge: v.optional(v.nullable(age()), "24h"),
    maxSessions: v.optional(v.nullable(count()), null),
    // The shortest time between two attempts to recycle the same server.
    pause: v.optional(wait(), "60s"),
  }),
  v.transform(({ maxMemory, maxAge, maxSessions, pause }) => ({
    maxMemoryBytes: maxMemory,
    maxAgeMs: maxAge,
    maxSessions,
    pauseMs: pause,
  })),
);

const drain = v.pipe(
  v.strictObject({ timeout: v.optional(wait(), "30s") }),
  v.transform(({ timeout }) => ({ timeoutMs: timeout })),
);

const serve = v.pipe(
  v.strictObject({
    // If null, there is no front door.
    listen: v.optional(v.nullable(address()), "127.0.0.1:4300"),
    // Whether the log gets a line for each request at the front door, without its content.
    accessLog: v.optional(flag(), false),
    metrics: v.optional(address(), "127.0.0.1:9464"),
    gcInterval: v.optional(wait(), "1h"),
    // The largest message that a client may send to the front door.
    maxFrame: v.optional(frameSize(), "8mb"),
    // Whether each connection to the front door begins with a proxy's header that names the client (PROXY protocol v2).
    proxyProtocol: v.optional(flag(), false),
    // How long a prompt may wait at the front door while other users use its session.
    turnWait: v.optional(wait(), "30s"),
    logMaxSize: v.optional(size(), "10mb"),
    // The number of rotated logs to keep for each server, in addition to the current one.
    logFiles: v.optional(count(), 3),
  }),
  v.transform(({ gcInterval, maxFrame, turnWait, logMaxSize, ...rest }) => ({
    ...rest,
    gcIntervalMs: gcInterval,
    maxFrameBytes: maxFrame,
    turnWaitMs: turnWait,
    logMaxBytes: logMaxSize,
  })),
);

const storeOptions = v.strictObject({
  // Allows Redis without TLS on another host. Anybody on the network path can then read and change the state of the
  // fleet.
  insecure: v.optional(flag(), false),
});

/** Settings of this host, for a fleet of several hosts that share a Redis. */
const host = v.pipe(
  v.strictObject({
    // If null, the host keeps its previous name or takes the machine's name.
    name: v.optional(v.nullable(hostName()), null),
    // The address at which other hosts reach the front door of this host. If null, it is the address at which the front
    // door listens.
    advertise: v.optional(v.nullable(address()), null),
    // How long after the last heartbeat of this host the other hosts consider it dead and take over its users and
    // sessions.
    ttl: v.optional(hostTtl(), "15s"),
  }),
  v.transform(({ ttl, ...rest }) => ({ ...rest, ttlMs: ttl })),
);

const storage = v.strictObject({
  // A folder that all hosts mount, for the state of sessions. If null, each host stores the state on its own disk.
  shared: v.optional(v.nullable(path("always")), null),
});

const keys = v.strictObject({
  isolation: v.optional(choice(["per-user", "shared"]), "per-user"),
  ports: v.optional(ports, {}),
  pool: v.optional(pool, {}),
  runtime: v.optional(runtime, {}),
  auth: v.optional(auth, {}),
  provider: v.optional(v.nullable(provider), null),
  session: v.optional(session, {}),
  lock: v.optional(lock, {}),
  health: v.optional(health, {}),
  recycle: v.optional(recycle, {}),
  drain: v.optional(drain, {}),
  serve: v.optional(serve, {}),
  limits: v.optional(limits, {}),
  store: v.optional(store(), "file"),
  storeOptions: v.optional(storeOptions, {}),
  host: v.optional(host, {}),
  storage: v.optional(storage, {}),
});

const DEFAULT_MODEL = "gpt-5";

/**
 * Chooses the model. A provider needs a default, because it cannot choose a model itself. GitHub's models differ from
 * account to account, so no default is right for all of them, and the runtime chooses.
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
