import * as v from "valibot";
import type { NamedSource } from "../base/server.js";
import { ALLOWED_SAFE_URL, isSafeUrl } from "../base/values/network.js";
import * as is from "./rules.js";
import { secret } from "./secret.js";

/*
 * Every key of the configuration, as in the public contract, with its type, its default and its description. The
 * loader, the messages, the JSON Schema and docs/configuration-keys.md all read this file. The output is resolved:
 * durations are in milliseconds, sizes are in bytes, and addresses and the store are objects. Resolved names contain
 * the unit.
 */

/** The description of a key, in one sentence of Markdown, and what else only people and the loader need. */
export interface About {
  meaning: string;
  /** The meaning of null: "or null for no limit". */
  nothing?: string;
  /** The default in words, if it depends on other keys. */
  inWords?: string;
  /**
   * The values that a project's `.copilotfleet.json` may set without the user's trust. A stranger may have written the
   * file, because it may be part of a cloned repository. So all other values are guarded (`fleet/trust.ts`). A value
   * belongs here only if it runs or sends nothing, deletes nothing, weakens no protection or limit, opens no address,
   * and stops no server.
   */
  untrusted?: "all" | readonly unknown[];
}

const described = <S extends v.GenericSchema>(schema: S, about: About) =>
  v.pipe(schema, v.metadata({ ...about })) as unknown as S;

/** A key with its default. A default of undefined depends on other keys. */
const key = <S extends v.GenericSchema, D extends v.InferInput<S> | undefined>(
  schema: S,
  initial: D,
  meaning: string,
  about: Partial<About> = {},
): v.OptionalSchema<S, NoInfer<D>> => v.optional(described(schema, { meaning, ...about }), initial);

/** A key that may be null, which stands for `nothing`. */
const orNull = <S extends v.GenericSchema, D extends v.InferInput<S> | null = null>(
  schema: S,
  meaning: string,
  nothing = "no limit",
  initial: D = null as D,
): v.OptionalSchema<v.NullableSchema<S, undefined>, NoInfer<D>> =>
  key(v.nullable(schema), initial, meaning, { nothing });

type UnitOf<S> = S extends { unit: infer U extends string } ? U : S extends { wrapped: infer W } ? UnitOf<W> : "";
/** The resolved values of a section. The name of a duration ends with `Ms`, and the name of a size with `Bytes`. */
type Values<E extends v.ObjectEntries> = {
  [K in keyof E & string as `${K}${UnitOf<E[K]>}`]: v.InferOutput<E[K]>;
};
/** Refuses the value of a key that does not fit the other values of the section. */
type Refuse = (key: string, allowed: string) => never;
type Resolve<E extends v.ObjectEntries, O> = (values: Values<E>, refuse: Refuse) => O;
type Section<E extends v.ObjectEntries, O> = v.BaseSchema<
  v.InferInput<v.StrictObjectSchema<E, undefined>>,
  O,
  v.BaseIssue<unknown>
>;

function unitOf(schema: object): string {
  return "unit" in schema ? String(schema.unit) : "wrapped" in schema ? unitOf(schema.wrapped as object) : "";
}

/** A section. `resolve` makes the output from its values. */
function object<E extends v.ObjectEntries, O>(meaning: string, entries: E, resolve: Resolve<E, O>): Section<E, O> {
  const names = Object.entries(entries).map(([name, schema]) => [name, `${name}${unitOf(schema)}`] as const);
  const resolved = v.rawTransform<unknown, O>(({ dataset: { value: given }, addIssue, NEVER }) => {
    const values = given as Record<string, unknown>;
    const refuse = (key: string, message: string) => {
      const value = values[key];
      addIssue({ message, input: value, path: [{ type: "object", origin: "value", input: values, key, value }] });
      return NEVER;
    };
    return resolve(Object.fromEntries(names.map(([name, to]) => [to, values[name]])) as Values<E>, refuse);
  });
  const schema: v.GenericSchema = described(v.strictObject(entries), { meaning });
  return v.pipe(schema, resolved) as unknown as Section<E, O>;
}

/** A section whose keys all have a default. */
const section = <E extends v.ObjectEntries, O = Values<E>>(
  meaning: string,
  entries: E,
  resolve: Resolve<E, O> = (values) => values as O,
): v.OptionalSchema<Section<E, NoInfer<O>>, v.InferInput<Section<E, O>>> =>
  v.optional(object(meaning, entries, resolve), {} as never) as never;

const ports = section("The ports that servers may use.", {
  from: key(is.port(), 5000, "The first port that servers may use."),
  to: key(is.port(), 5999, "The last port that servers may use."),
});

const pool = section("The servers as a group.", {
  servers: key(is.count(), 1, "The number of shared servers."),
  strategy: key(is.choice("sticky", "round-robin", "least-loaded"), "sticky", "How users share servers."),
  idleTimeout: orNull(is.wait(), "How long `serve` keeps a user's unused server running."),
});

const runtime = section("The Copilot program that each server runs.", {
  path: orNull(is.program(), "The program to start.", "the program that the SDK brings"),
  args: key(is.runtimeArgs(), [], "Further flags for the program."),
  env: key(is.runtimeEnv(), ["HTTPS_PROXY"], "The variables that servers get in addition to the fleet's own list."),
});

const githubApp = section(
  "A GitHub App whose installation pays for all users. The fleet renews its tokens. Set all three keys.",
  {
    appId: orNull(is.gitHubId(), "The App ID, from the settings of the App.", "none"),
    installationId: orNull(is.gitHubId(), "The number at the end of the address of the installation's page.", "none"),
    privateKey: orNull(secret({ file: "/run/secrets/github-app.pem" }), "The App's private key (PEM).", "none"),
  },
  (values, refuse) => {
    const { appId, installationId, privateKey } = values;
    if (appId !== null && installationId !== null && privateKey !== null) return { appId, installationId, privateKey };
    const [missing = ""] = Object.entries(values).find(([, value]) => value === null) ?? [];
    return Object.values(values).every((value) => value === null)
      ? null
      : refuse(missing, "a value, because other keys of auth.githubApp are set");
  },
);

const auth = section("The source of users' GitHub tokens, for GitHub's own models. Set at most one source.", {
  githubToken: orNull(secret({ env: "GITHUB_TOKEN_{user}" }, true), "The token of each `{user}`.", "none"),
  githubApp,
});

/** The prices of a million tokens of a model, in any currency. */
interface Price {
  input: number;
  /** For input tokens that the service read from its cache. */
  cached: number;
  output: number;
}

export type Prices = Readonly<Record<string, Price>>;

const PRICES = { "gpt-5": { input: 1.25, cached: 0.125, output: 10 } };
const ALLOWED_PRICES = `an object with the names of models, each with its prices, such as ${JSON.stringify(PRICES)}`;
const MOST = 1_000_000;
const ALLOWED_PRICE = `a number from 0 to ${MOST}, which is the price of a million tokens`;
const price = () => v.pipe(v.number(ALLOWED_PRICE), v.minValue(0, ALLOWED_PRICE), v.maxValue(MOST, ALLOWED_PRICE));

/** An object in the value of a key. `whole` is the text after "Allowed:" for a value that is not an object. */
const inner = <E extends v.ObjectEntries>(entries: E, whole: string) =>
  v.strictObject(entries, ({ expected, received }) => {
    if (expected === "never") return `the keys ${Object.keys(entries).join(", ")}`;
    return received === "undefined" ? "a value, because it has no default" : whole;
  });

const prices = is.asJson(
  v.record(
    v.string(),
    v.pipe(
      inner({ input: price(), cached: v.optional(price()), output: price() }, ALLOWED_PRICES),
      // Without a price of their own, cached tokens cost as much as other input tokens.
      v.transform(({ cached, ...rest }): Price => ({ ...rest, cached: cached ?? rest.input })),
    ),
    ALLOWED_PRICES,
  ),
  { allowed: ALLOWED_PRICES, example: PRICES },
);

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

const provider = object(
  "Your own model service.",
  {
    // The echo model sends nothing.
    type: key(is.choice("openai", "azure", "anthropic", "echo"), "openai", "The protocol. `echo` is built in.", {
      untrusted: ["echo"],
    }),
    baseUrl: orNull(is.httpUrl(), "The URL of the model service.", 'the type "echo"'),
    apiKey: orNull(
      secret({ env: "OPENAI_API_KEY" }),
      "The service's key. A refused key is read again.",
      "a service that needs no key",
    ),
    bearer: key(is.flag(), false, "Whether the key is sent as a bearer token, as with the type `openai`."),
    wireApi: key(is.choice("completions", "responses"), "completions", "The API, for the types `openai` and `azure`."),
    prices: orNull(prices, "The prices of a million tokens of each model, in any currency, for `usage`.", "no costs"),
  },
  ({ type, baseUrl, ...rest }, refuse): Provider => {
    if (type !== "echo")
      return baseUrl === null
        ? refuse("baseUrl", `the URL of a model service, because provider.type is "${type}"`)
        : { type, baseUrl, ...rest };
    return baseUrl === null
      ? { type }
      : refuse("baseUrl", 'no value when provider.type is "echo", because the echo model is built in');
  },
);

const session = section("Sessions and their turns. See [Tools and files](configuration.md#tools-and-files).", {
  // The default depends on the provider: see `withModel`.
  model: key(v.nullable(is.modelName()), undefined, "The model of sessions whose creator names none.", {
    nothing: "a model that the runtime chooses",
    inWords: '`"gpt-5"` with a provider, `null` without one',
    // It chooses among the models of the user's own account or provider.
    untrusted: "all",
  }),
  ttl: orNull(is.age(), "How long `gc` keeps an unused session.", "sessions that are never deleted", "30d"),
  maxActive: key(is.count(), 50, "The number of sessions that one server may have in memory."),
  // The runtime accepts no less than 30.
  maxCredits: orNull(is.count(1000, 30), "The [AI credits](limits.md#credits) that a session may use."),
  // "none" is the strictest value.
  approve: key(is.choice("none", "ask", "all"), "none", "Which tool calls of a model run.", {
    untrusted: ["none"],
  }),
  answerTimeout: key(is.wait(), "5m", "How long a permission or a question waits for the user's answer over HTTP."),
  // "auto" depends on the server's sandbox. "none" is the strictest value.
  host: key(
    is.choice("owner", "none", "auto"),
    "auto",
    "Whether clients may reach files and start programs on their own servers.",
    { untrusted: ["none"] },
  ),
  tools: orNull(is.toolNames(), "The tools of all sessions.", "all tools (none on a shared server)"),
  infinite: section("The SDK's `infiniteSessions`. It is always off for ephemeral sessions.", {
    enabled: key(is.flag(), true, "Whether the runtime shortens a long history."),
    backgroundCompactionThreshold: key(is.share(), 0.8, "How full the context is when this begins."),
  }),
});

// Below the lowest values that the limits allow, no server would start.
const sandbox = section(
  "The boundary that the operating system puts around each server. See [The sandbox](security.md#the-sandbox).",
  {
    mode: key(is.choice("auto", "landlock", "bwrap", "none"), "auto", "The sandbox. `auto`: the strongest that works."),
    binds: key(is.binds(), [], "Further folders that servers reach. `{user}` stands for the user's id."),
    network: key(
      is.choice("auto", "public", "allow-list", "none", "open"),
      "auto",
      "The hosts that servers reach. `auto`: public addresses where that works, or else every address.",
    ),
    allow: key(is.networkRules(), [], "The hosts of `allow-list`, as `HOST[:PORT]`."),
    memory: orNull(is.sizeFrom("64mb", "1gb"), "The memory of each server."),
    processes: orNull(is.count(200, 32), "The number of processes and threads of each server."),
    openFiles: orNull(is.count(1024, 64), "The number of open files of each process of a server."),
    cpu: orNull(is.processors(), "The processor time of each server, as a number of processors."),
    disk: orNull(is.sizeFrom("1mb", "2gb"), "The size of each server's home and temporary folder."),
  },
  ({ mode, binds, network, allow, memoryBytes: memory, diskBytes: disk, ...limits }) => ({
    ...{ mode, binds, network, allow },
    limits: { ...limits, memory, disk },
  }),
);

/** Only asymmetric algorithms. With a symmetric algorithm, everybody who can verify a token could also make one. */
const ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"] as const;
const ALLOWED_ALGORITHMS = `a list with one or more of ${ALGORITHMS.join(", ")}`;
const ALLOWED_JWKS = `${ALLOWED_SAFE_URL}, or the absolute path of a file with a JSON Web Key Set`;
const ALLOWED_CLAIMS = 'an object with the names of claims and the text that each must have, such as "acme"';
const ISSUERS = [{ issuer: "https://login.example", audience: "copilotfleet" }];
const ALLOWED_ISSUERS = `a list of objects, each with another issuer, such as ${JSON.stringify(ISSUERS)}`;
const claim = () => is.exact('the name of a claim, such as "sub"');

const issuer = v.pipe(
  inner(
    {
      issuer: is.safeUrl(),
      audience: is.exact('the text that the claim "aud" must have, such as "copilotfleet"'),
      // If null, the fleet finds the address by OpenID Connect Discovery: the issuer publishes it.
      jwks: v.optional(
        v.nullable(
          v.pipe(
            v.string(ALLOWED_JWKS),
            v.check((text) => text.startsWith("/") || isSafeUrl(text), ALLOWED_JWKS),
          ),
        ),
        null,
      ),
      algorithms: v.optional(
        v.pipe(
          v.array(v.picklist(ALGORITHMS, ALLOWED_ALGORITHMS), ALLOWED_ALGORITHMS),
          v.minLength(1, ALLOWED_ALGORITHMS),
        ),
        ["RS256", "ES256", "EdDSA"],
      ),
      user: v.optional(claim(), "sub"),
      groups: v.optional(v.nullable(claim()), "groups"),
      scopes: v.optional(v.nullable(claim()), "scope"),
      // Claims that a token must have. They are necessary for an issuer that gives tokens to everybody, such as GitHub
      // Actions.
      claims: v.optional(v.record(v.string(), is.exact(ALLOWED_CLAIMS), ALLOWED_CLAIMS), {}),
      clockSkew: v.optional(is.clockSkew(), "30s"),
    },
    "an object with the keys issuer and audience",
  ),
  v.transform(({ clockSkew, ...rest }) => ({ ...rest, clockSkewMs: clockSkew })),
);

/** An identity provider whose tokens the front door accepts. */
export type IssuerConfig = v.InferOutput<typeof issuer>;

const issuers = is.asJson(
  v.pipe(
    v.array(issuer, ALLOWED_ISSUERS),
    v.check((list) => new Set(list.map((item) => item.issuer)).size === list.length, ALLOWED_ISSUERS),
  ),
  { allowed: ALLOWED_ISSUERS, kind: "list of issuers", example: ISSUERS },
);

const identity = section("How users prove to the front door who they are. See [Identity](identity.md).", {
  tokenTtl: key(is.age(), "90d", "How long a token is valid if `token issue` gets no `--ttl`."),
  jwt: key(issuers, [], "The [issuers](identity.md#company-sso) of JSON Web Tokens that the front door accepts."),
  github: section("Users who sign on with their own GitHub tokens. See [GitHub](identity.md#github).", {
    api: orNull(is.safeUrl(), "The address of GitHub's API, which checks clients' tokens.", "no sign-on with GitHub"),
    // If empty, every account on GitHub may sign on.
    organizations: key(is.organizations(), [], "A user must be an active member of one of these. Empty: anybody."),
  }),
});

const lock = section("Leases on sessions.", {
  ttl: key(is.leaseTtl(), "300s", "How long a lease outlives its holder, from 1 s to 24 days."),
});

/** The default of `health.timeout`, unless the interval is shorter. */
const LONGEST_DEFAULT_PROBE_MS = 2000;

const health = section(
  "How `serve` checks and restarts servers.",
  {
    interval: key(is.wait(), "5s", "The time between two probes of a server."),
    timeout: key(is.wait("2s"), undefined, "The deadline of a probe.", {
      inWords: '`"2s"`, or `health.interval` if that is shorter',
    }),
    failures: key(is.count(), 3, "The number of unanswered probes in a row that make a server count as hung."),
    restarts: key(
      is.count(),
      5,
      "How many times in a row a server that crashes is started again. The next crash abandons it.",
    ),
    stalledTurn: key(is.wait(), "10m", "How long a turn may be silent before it counts as stalled in the metrics."),
  },
  ({ timeoutMs, ...rest }) => ({
    ...rest,
    timeoutMs: timeoutMs ?? Math.min(LONGEST_DEFAULT_PROBE_MS, rest.intervalMs),
  }),
);

const recycle = section("When `serve` replaces a server by a fresh process with the same home.", {
  maxMemory: orNull(is.size(), "The private memory above which a server is replaced.", "no limit", "1gb"),
  maxAge: orNull(is.age(), "The age above which a server is replaced.", "no limit", "24h"),
});

const drain = section("How servers stop.", {
  timeout: key(is.wait(), "30s", "How long running turns may take to end."),
});

const serve = section("The supervisor, the front door and the HTTP API.", {
  listen: orNull(
    is.address(),
    "The address of the front door.",
    "none, so that no client can connect",
    "127.0.0.1:4300",
  ),
  http: orNull(is.address(4380), "The address of the [HTTP API](http.md).", "no HTTP API"),
  accessLog: key(is.flag(), false, "Whether the log has a line for each request, without its content."),
  metrics: key(is.address(), "127.0.0.1:9464", "The address of metrics and health checks."),
  maxFrame: key(is.frameSize(), "8mb", "The size of the longest message of a client, from 64 kB to 256 MB."),
  proxyProtocol: key(is.flag(), false, "Whether the front door expects PROXY protocol v2 headers."),
  tls: section("TLS at the front door and the HTTP API. See [TLS](front-door.md#tls).", {
    cert: orNull(is.file("tls.crt"), "The file with the front door's chain of certificates (PEM).", "plain TCP"),
    key: orNull(is.file("tls.key"), "The file with the certificate's key (PEM), for its owner alone.", "plain TCP"),
    clientCa: orNull(is.file("ca.crt"), "The file with clients' authorities (PEM).", "clients without certificates"),
  }),
  turnWait: key(is.wait(), "30s", "How long a prompt may wait at the front door while others use its session."),
});

const http = section("The [HTTP API](http.md), whose address is `serve.http`.", {
  origins: key(is.origins(), [], "The [origins](http.md#origins-and-hosts) whose pages may use the HTTP API."),
  proxies: key(is.proxies(), [], "The [proxies](http.md#behind-a-proxy) in front of the HTTP API."),
});

/** The limits that a user may have. Null: unlimited. */
const userLimits = {
  turnsPerMinute: v.nullable(is.count(20)),
  concurrentTurns: v.nullable(is.count(4)),
  sessions: v.nullable(is.count(1000)),
  connections: v.nullable(is.count(16)),
  tokensPerDay: v.nullable(is.tokens()),
  tokensPerMonth: v.nullable(is.tokens()),
};
const GROUPS = { interns: { tokensPerDay: 100_000 } };
const ALLOWED_GROUPS = `an object with the names of groups, each with limits of its own, such as ${JSON.stringify(GROUPS)}`;
const ofGroup = v.partial(inner(userLimits, ALLOWED_GROUPS));
const groups = is.asJson(v.record(v.string(), ofGroup, ALLOWED_GROUPS), { allowed: ALLOWED_GROUPS, example: GROUPS });
const connections = "The number of open connections to the front door, and of HTTP requests.";
const noLimit = { nothing: "no limit" };

const limits = section("How much users may have at once. `null` removes a limit. See [Limits](limits.md).", {
  default: section("The limits of each user.", {
    turnsPerMinute: key(userLimits.turnsPerMinute, null, "The number of turns that begin within a minute.", noLimit),
    concurrentTurns: key(userLimits.concurrentTurns, null, "The number of turns that run at once.", noLimit),
    sessions: key(userLimits.sessions, 1000, "The number of sessions in all states.", noLimit),
    connections: key(userLimits.connections, 16, connections, noLimit),
    tokensPerDay: key(userLimits.tokensPerDay, null, "The number of model tokens in a day of UTC.", noLimit),
    tokensPerMonth: key(userLimits.tokensPerMonth, null, "The number of model tokens in a month of UTC.", noLimit),
  }),
  groups: key(groups, {}, "The limits of groups' members. They replace those of `limits.default`."),
  total: section("The limits of all users together.", {
    connections: orNull(is.count(), connections, "no limit", 1024),
  }),
});

const events = section("The [audit log](events.md): who did what, and why.", {
  retention: key(is.age(), "90d", "How long the log keeps an event on its host."),
});

const usage = section("The [ledger](usage.md) of turns, model requests and tokens.", {
  retention: key(is.age(), "400d", "How long the ledger keeps what users have used."),
});

const storeOptions = section("The connection to a store in Redis.", {
  key: orNull(
    secret({ file: "/run/secrets/store-key" }),
    "The key that [signs records](redis.md#signatures).",
    "the key in the state folder",
  ),
  password: orNull(secret({ env: "REDIS_PASSWORD" }), "The password of Redis.", "no password"),
});

const host = section("This host, in a [fleet of several hosts](hosts.md) that share a Redis.", {
  name: orNull(is.hostName(), "The name of this host.", "its present name (a new host: the name of the machine)"),
  advertise: orNull(is.advertised(), "The address for other hosts.", "the address of serve.listen"),
  tls: section("TLS from this host to other front doors. See [Many hosts](hosts.md#tls-between-hosts).", {
    cert: orNull(is.file("host.crt"), "The file with this host's certificate (PEM).", "no certificate"),
    key: orNull(is.file("host.key"), "The file with its key (PEM), for its owner alone.", "no certificate"),
    ca: orNull(is.file("ca.crt"), "The authorities of other hosts (PEM).", "those that Node.js trusts"),
  }),
  // Other hosts take over the users and sessions of a host that counts as gone.
  ttl: key(is.hostTtl(), "15s", "How long after its last heartbeat a host counts as gone, from 3 s to 10 minutes."),
});

const storage = section("The session state of a fleet of several hosts.", {
  shared: orNull(is.folder(), "The folder that all hosts mount for session state.", "each host's own disk"),
});

const keys = v.strictObject({
  isolation: key(is.choice("per-user", "shared"), "per-user", "Whether each user gets their own server."),
  ports,
  pool,
  runtime,
  auth,
  provider: orNull(provider, "Your own model service.", "GitHub's own models"),
  session,
  sandbox,
  identity,
  lock,
  health,
  recycle,
  drain,
  serve,
  http,
  limits,
  events,
  usage,
  store: key(is.store(), "file", "The place of the recorded state: files, or [a Redis database](redis.md)."),
  storeOptions,
  host,
  storage,
  insecure: key(
    is.flag(),
    false,
    "Whether connections of clients, between hosts and to Redis may leave the machine without TLS.",
    // It is the strictest value.
    { untrusted: [false] },
  ),
  // The library does not read it.
  user: orNull(is.userId(), "The default for `--user` in commands that act as a user.", "no default user"),
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
