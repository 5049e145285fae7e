import * as v from "valibot";
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
  share,
  size,
  store,
  userVariable,
  variable,
  wait,
} from "./rules.js";
import { runtimeArgs, runtimeEnv, toolNames } from "./runtime-rules.js";

/**
 * Every key of the configuration, as the public contract has it, with its default. What comes out is resolved:
 * durations in milliseconds, sizes in bytes, addresses and the store as objects, with the unit in the name.
 */

const ports = v.strictObject({ from: v.optional(port(), 5000), to: v.optional(port(), 5999) });

const pool = v.pipe(
  v.strictObject({
    servers: v.optional(count(), 1),
    strategy: v.optional(choice(["sticky", "round-robin", "least-loaded"]), "sticky"),
    // What `serve` does beside: shared servers that run before anybody asks, and users' own that sleep when nobody is there.
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

/** A model service that speaks one of the known protocols. */
export interface RemoteProvider {
  type: "openai" | "azure" | "anthropic";
  baseUrl: string;
  /** The variable that holds the key; null for services that want none. */
  apiKeyEnv: string | null;
  /** Means something to "openai" and "azure" only. */
  wireApi: "completions" | "responses";
}

/** The echo model that comes with the fleet: it needs no network. */
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
      return baseUrl === null ? { type } : refuse('nothing when provider.type is "echo", which is built in');
    }
    return baseUrl === null
      ? refuse(`the URL of a model service, as provider.type is "${type}"`)
      : { type, baseUrl, ...rest };
  }),
);

const session = v.pipe(
  v.strictObject({
    // Null: the runtime chooses. The default depends on the provider: see `withModel`.
    model: v.optional(v.nullable(modelName())),
    ttl: v.optional(age(), "24h"),
    maxActive: v.optional(count(), 50),
    approve: v.optional(choice(["none", "ask", "all"]), "none"),
    // Whether a user's clients reach the disk and start programs of the user's own server. Auto: only inside a sandbox.
    host: v.optional(choice(["owner", "none", "auto"]), "auto"),
    // Null: all that the runtime has on a user's own server, none on a shared one.
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
    // Beyond the ping: whether a session can be made, too.
    session: v.optional(flag(), false),
    startup: v.optional(wait(), "30s"),
    restarts: v.optional(count(), 5),
    backoff: v.optional(wait(), "1s"),
    stable: v.optional(wait(), "60s"),
    stalledTurn: v.optional(wait(), "10m"),
  }),
  // Who asks for a faster interval only, gets a deadline that fits it.
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
    // The least time between two attempts at one server.
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
    // Null: no front door.
    listen: v.optional(v.nullable(address()), "127.0.0.1:4300"),
    // Whether each request at the front door gets a line in the log, without its content.
    accessLog: v.optional(flag(), false),
    metrics: v.optional(address(), "127.0.0.1:9464"),
    gcInterval: v.optional(wait(), "1h"),
    // The longest message that a client may send to the front door.
    maxFrame: v.optional(frameSize(), "8mb"),
    // Whether each connection to the front door begins with the header of a proxy that names the client (PROXY protocol v2).
    proxyProtocol: v.optional(flag(), false),
    // How long a prompt may wait at the front door while others use its session.
    turnWait: v.optional(wait(), "30s"),
    logMaxSize: v.optional(size(), "10mb"),
    // How many rotated logs are kept of each server, beside the one that it writes.
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

/** @param bytes of `unreadBytes` */
const limitsOf = (defaults: {
  connections: number;
  sessions: number | null;
  requestsInFlight: number;
  bytes: string;
}) =>
  v.strictObject({
    // Connections to the front door at the same time.
    connections: v.optional(v.nullable(count()), defaults.connections),
    // Sessions that are kept, in all states.
    sessions: v.optional(v.nullable(count()), defaults.sessions),
    // Requests at the front door that are not answered.
    requestsInFlight: v.optional(v.nullable(count()), defaults.requestsInFlight),
    // Bytes that the front door holds in its buffers: unfinished frames, unanswered requests, and what clients do not take.
    unreadBytes: v.optional(v.nullable(size()), defaults.bytes),
  });

/** Null: no limit. */
const limits = v.strictObject({
  /** For each user. */
  default: v.optional(limitsOf({ connections: 16, sessions: 1000, requestsInFlight: 2000, bytes: "64mb" }), {}),
  /** For all users together. */
  total: v.optional(limitsOf({ connections: 1024, sessions: null, requestsInFlight: 20_000, bytes: "512mb" }), {}),
});

const storeOptions = v.strictObject({
  // Redis without TLS on another host: whoever is on the way reads and changes the state of the fleet.
  insecure: v.optional(flag(), false),
});

/** This host, where several share a fleet (and its Redis). */
const host = v.pipe(
  v.strictObject({
    // Null: as it was called before, or as the machine is called.
    name: v.optional(v.nullable(hostName()), null),
    // Where other hosts reach the front door of this one. Null: where it listens.
    advertise: v.optional(v.nullable(address()), null),
    // How long after its last heartbeat others take it for dead, and take over what was there.
    ttl: v.optional(hostTtl(), "15s"),
  }),
  v.transform(({ ttl, ...rest }) => ({ ...rest, ttlMs: ttl })),
);

const storage = v.strictObject({
  // A folder that all hosts mount, for the state of sessions. Null: each host keeps it on a disk of its own.
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
 * A provider of one's own cannot choose a model. GitHub's own models differ from account to account, so that no name is
 * right for all of them: there the runtime chooses.
 */
function withModel({ session, ...rest }: v.InferOutput<typeof keys>) {
  const { model = rest.provider === null ? null : DEFAULT_MODEL, ...others } = session;
  return { ...rest, session: { ...others, model } };
}

export const ConfigSchema = v.pipe(keys, v.transform(withModel));

/** The configuration as it is written in a file. */
export type ConfigInput = v.InferInput<typeof ConfigSchema>;

/** The configuration, complete and resolved. */
export type Config = v.InferOutput<typeof ConfigSchema>;
