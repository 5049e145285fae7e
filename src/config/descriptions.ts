import type { ConfigInput } from "./schema.js";
import type { SecretReference } from "./secret.js";

/** The keys of `serve`, of hosts, and of the state. */
const OF_OPERATION = {
  "identity.jwt": {
    meaning:
      "The issuers of JSON Web Tokens that the front door accepts. In a variable, this is JSON. See [Company SSO](identity.md#company-sso).",
    examples: [[{ issuer: "https://login.example", audience: "copilotfleet" }]],
  },

  "identity.github.api": {
    meaning: "The address of GitHub's API, which checks GitHub tokens of clients. `null`: the front door refuses them.",
    examples: ["https://api.github.com", null],
  },
  "identity.github.organizations": {
    meaning: "Organizations. A user must be an active member of one of them. Empty: every account may sign on.",
    examples: [["acme"]],
  },

  "lock.ttl": { meaning: "How long a lease outlives its holder, from 1 s to 24 days.", examples: ["300s"] },

  "health.interval": { meaning: "The time between two probes of a server.", examples: ["5s"] },
  "health.timeout": {
    meaning: "The deadline of a probe.",
    examples: ["2s"],
    default: '`"2s"`, or `health.interval` if that is shorter',
  },
  "health.failures": {
    meaning: "The number of unanswered probes in a row that make a server count as hung.",
    examples: [3],
  },
  "health.restarts": {
    meaning: "How many times in a row a server that crashes is started again. The next crash abandons it.",
    examples: [5],
  },
  "health.stalledTurn": {
    meaning: "The silence after which a turn counts as stalled in the metrics.",
    examples: ["10m"],
  },

  "recycle.maxMemory": {
    meaning: "The private memory above which a server is replaced. `null`: without limit.",
    examples: ["1gb", null],
  },
  "recycle.maxAge": {
    meaning: "The age above which a server is replaced. `null`: without limit.",
    examples: ["24h", null],
  },

  "drain.timeout": { meaning: "How long running turns may take to end.", examples: ["30s"] },

  "serve.listen": {
    meaning: "The address of the front door. Port 0 is any free port. `null`: no front door.",
    examples: ["127.0.0.1:4300", null],
  },
  "serve.http": {
    meaning: "The address of the [HTTP API](http.md). Port 0 is any free port. `null`: no HTTP API.",
    examples: ["127.0.0.1:4380", null],
  },
  "serve.accessLog": {
    meaning: "Whether the log has a line for each request at the front door and at the HTTP API, without its content.",
    examples: [true],
  },
  "serve.metrics": { meaning: "The address of metrics and health checks.", examples: ["127.0.0.1:9464"] },
  "serve.maxFrame": {
    meaning: "The size of the longest message of a client, from 64 kB to 256 MB.",
    examples: ["8mb"],
  },
  "serve.proxyProtocol": {
    meaning:
      "Whether each connection to the front door begins with a PROXY protocol v2 header, in which a proxy names the client.",
    examples: [true],
  },
  "serve.tls.cert": {
    meaning: "The file with the certificate of the front door, and those between it and its authority (PEM).",
    examples: ["/etc/copilotfleet/tls.crt"],
  },
  "serve.tls.key": {
    meaning: "The file with the key of that certificate (PEM). Only its owner may use it.",
    examples: ["/etc/copilotfleet/tls.key"],
  },
  "serve.tls.clientCa": {
    meaning: "The file with the authorities whose clients are admitted (PEM). `null`: clients need no certificate.",
    examples: ["/etc/copilotfleet/ca.crt", null],
  },
  "serve.turnWait": {
    meaning: "How long a prompt may wait at the front door while others use its session.",
    examples: ["30s"],
  },

  "http.origins": {
    meaning:
      "The origins whose pages may use the HTTP API. A request may also name the host of one of them as its `Host`. See " +
      "[Origins and hosts](http.md#origins-and-hosts).",
    examples: [["https://app.example"]],
  },
  "http.proxies": {
    meaning:
      "The addresses and networks of proxies in front of the HTTP API. If one of them passes a request on, the last address in " +
      "`X-Forwarded-For` that is none of theirs counts as the client's. See [Behind a proxy](http.md#behind-a-proxy).",
    examples: [["10.0.0.0/8"]],
  },

  "limits.default.connections": {
    meaning: "The number of open connections to the front door, and of HTTP requests.",
    examples: [16, null],
  },
  "limits.default.sessions": { meaning: "The number of sessions in all states.", examples: [1000, null] },
  "limits.default.turnsPerMinute": { meaning: "The number of turns that begin within a minute.", examples: [20, null] },
  "limits.default.concurrentTurns": { meaning: "The number of turns that run at once.", examples: [4, null] },
  "limits.default.tokensPerDay": {
    meaning: "The number of model tokens, input and output, in a day of UTC.",
    examples: [1_000_000, null],
  },
  "limits.default.tokensPerMonth": {
    meaning: "The number of model tokens, input and output, in a month of UTC.",
    examples: [20_000_000, null],
  },
  "limits.groups": {
    meaning:
      "The limits of the members of groups, by the name of the group. They replace those of `limits.default`. In a variable, this is JSON. See [Limits](limits.md).",
    examples: [{ interns: { tokensPerDay: 100_000 } }],
  },
  "limits.total.connections": {
    meaning: "The number of open connections to the front door, and of HTTP requests.",
    examples: [1024, null],
  },
  "limits.total.sessions": { meaning: "The number of sessions in all states.", examples: [100_000, null] },

  "events.retention": {
    meaning: "How long the [audit log](events.md) keeps an event on its host.",
    examples: ["90d"],
  },

  "usage.retention": {
    meaning: "How long the [ledger](usage.md) keeps what users have used.",
    examples: ["400d"],
  },

  "identity.tokenTtl": {
    meaning: "How long a token is valid if `token issue` gets no `--ttl`.",
    examples: ["90d"],
  },

  store: {
    meaning: "The place of the recorded state: files, or a Redis database. See [State in Redis](redis.md).",
    examples: ["file", "rediss://redis.example:6379/0"],
  },
  "storeOptions.key": {
    meaning:
      "The key that signs the records in Redis, the same on all hosts. `null`: the file `store-key` in the state folder. See [Signatures](redis.md#signatures).",
    examples: [{ file: "/run/secrets/store-key" }, null],
  },
  "storeOptions.password": {
    meaning: "The password of Redis. The user's name belongs in the URL, as in `redis://NAME@HOST`.",
    examples: [{ env: "REDIS_PASSWORD" }, null],
  },

  "host.name": {
    meaning: "The name of this host. `null`: the name that it had before, or otherwise the machine's name.",
    examples: ["host-1", null],
  },
  "host.advertise": {
    meaning: "The address at which other hosts reach this host's front door. `null`: the one at which it listens.",
    examples: ["10.0.0.1:4300", null],
  },
  "host.tls.cert": {
    meaning: "The file with the certificate that this host shows to front doors with `serve.tls.clientCa` (PEM).",
    examples: ["/etc/copilotfleet/host.crt"],
  },
  "host.tls.key": {
    meaning: "The file with the key of that certificate (PEM). Only its owner may use it.",
    examples: ["/etc/copilotfleet/host.key"],
  },
  "host.tls.ca": {
    meaning: "The file with the authorities of other hosts' front doors (PEM). `null`: those that Node.js trusts.",
    examples: ["/etc/copilotfleet/ca.crt", null],
  },
  "host.ttl": {
    meaning: "How long after its last heartbeat a host counts as gone, from 3 s to 10 minutes.",
    examples: ["15s"],
  },

  "storage.shared": {
    meaning: "The folder that all hosts mount for session state. `null`: each host uses its own disk.",
    examples: ["/mnt/fleet", null],
  },

  insecure: {
    meaning:
      "Whether connections to other machines may go without TLS: those of clients to the front door and the HTTP API, those " +
      "between hosts, and those to Redis. Set it only where something else protects the network.",
    examples: [true],
  },

  user: {
    meaning:
      "The default for `--user` in commands that act as a user. It does not limit commands such as `list`, `stop` and " +
      "`delete`. The library does not read it.",
    examples: ["alice"],
  },
} as const satisfies Partial<ValueTexts>;

/** The keys of servers, models and sessions. */
const OF_SERVERS = {
  isolation: {
    meaning: "Whether each user gets their own server, or users share servers.",
    examples: ["per-user", "shared"],
  },

  "ports.from": { meaning: "The first port that servers may use.", examples: [5000] },
  "ports.to": { meaning: "The last port that servers may use.", examples: [5999] },

  "pool.servers": { meaning: "The number of shared servers.", examples: [4] },
  "pool.strategy": {
    meaning: "How a user gets one of the shared servers.",
    examples: ["sticky", "least-loaded"],
  },
  "pool.idleTimeout": {
    meaning: "How long `serve` keeps a user's unused server running. `null`: without limit.",
    examples: ["30m", null],
  },

  "runtime.path": {
    meaning: "The program to start. `null`: the fleet finds the one that the SDK brings.",
    examples: ["/opt/copilot/bin/copilot", null],
  },
  "runtime.args": { meaning: "Further flags for the program.", examples: [["--log-level", "debug"]] },
  "runtime.env": {
    meaning: "The variables that servers get in addition to the fleet's own list.",
    examples: [["HTTPS_PROXY", "NO_PROXY"]],
  },

  "auth.githubToken": {
    meaning: "The GitHub token of each user. `{user}` stands for the user's id.",
    examples: [{ env: "GITHUB_TOKEN_{user}" }, { command: "gh auth token" }, null],
  },
  "auth.githubApp.appId": { meaning: "The App ID, from the settings of the App.", examples: [123456] },
  "auth.githubApp.installationId": {
    meaning: "The number of the App's installation. It ends the address of the installation's page at GitHub.",
    examples: [7654321],
  },
  "auth.githubApp.privateKey": {
    meaning: "The App's private key (PEM).",
    examples: [{ file: "/run/secrets/github-app.pem" }],
  },

  "provider.type": {
    meaning: "The protocol of the model service, or the built-in echo model, which needs no network.",
    examples: ["openai", "echo"],
  },
  "provider.baseUrl": {
    meaning: "The URL of the model service. Required, unless the type is `echo`.",
    examples: ["http://127.0.0.1:11434/v1", "https://api.openai.com/v1"],
  },
  "provider.apiKey": {
    meaning:
      "The key of the model service. The fleet runs a command again after five minutes, and when the service refuses the key. `null`: the service needs none.",
    examples: [{ env: "OPENAI_API_KEY" }, { command: "vault read -field=key models/openai" }, null],
  },
  "provider.bearer": {
    meaning:
      "Whether the key is a bearer token, such as one of Microsoft Entra. With the type `openai`, each key is sent like one.",
    examples: [true],
  },
  "provider.prices": {
    meaning:
      "The prices of a million input, cached and output tokens of each model, in any currency. `usage` shows the cost by them. In a variable, this is JSON.",
    examples: [{ "gpt-5": { input: 1.25, cached: 0.125, output: 10 } }, null],
  },
  "provider.wireApi": {
    meaning: "The API of the model service, for the types `openai` and `azure`.",
    examples: ["completions", "responses"],
  },

  "session.model": {
    meaning: "The model of sessions whose creator names none. `null`: the runtime chooses one of the account's models.",
    examples: ["gpt-5", null],
    default: '`"gpt-5"` with a provider, `null` without one',
  },
  "session.ttl": {
    meaning: "How long after its last use `gc` keeps a session. `null`: for ever.",
    examples: ["30d", "24h", null],
  },
  "session.maxActive": { meaning: "The number of sessions that one server may have in memory.", examples: [50] },
  "session.maxCredits": {
    meaning:
      "The AI credits of GitHub that one session may use, at least 30. `null`: unlimited. See [Credits](limits.md#credits).",
    examples: [1000, null],
  },
  "session.approve": {
    meaning: "Which tool calls of a model run. See [Tools and files](configuration.md#tools-and-files).",
    examples: ["none", "ask"],
  },
  "session.answerTimeout": {
    meaning:
      "How long a permission or a question of the agent waits for an answer over HTTP. See [Permissions and questions](http.md#permissions-and-questions).",
    examples: ["5m", "30s"],
  },
  "session.host": {
    meaning:
      "Whether clients may reach files and start programs on their own servers. See [Tools and files](configuration.md#tools-and-files).",
    examples: ["auto", "owner"],
  },
  "session.tools": {
    meaning: "The tools of all sessions. `null`: all on a user's own server, and none on a shared one.",
    examples: [["custom:*", "builtin:view"], null],
  },
  "session.infinite.enabled": { meaning: "Whether the runtime shortens a long history.", examples: [true] },
  "session.infinite.backgroundCompactionThreshold": {
    meaning: "How full the model's context is when this begins, from 0 to 1.",
    examples: [0.8],
  },

  "sandbox.mode": {
    meaning:
      "How servers are restricted. `auto`: by the strongest sandbox that works on the machine. `bwrap` gives each server namespaces of its own. See [The sandbox](security.md#the-sandbox).",
    examples: ["auto", "bwrap"],
  },
  "sandbox.binds": {
    meaning:
      "Further folders that servers can change, or only read if `:ro` follows. `{user}` stands for the user's id.",
    examples: [["/srv/work/{user}", "/opt/tools:ro"]],
  },
  "sandbox.network": {
    meaning:
      "The hosts that servers reach. `auto`: public addresses alone where that works, or else every address. See [The network of a server](security.md#the-network-of-a-server).",
    examples: ["public"],
  },
  "sandbox.allow": { meaning: "The hosts of `allow-list`, as `HOST[:PORT]`.", examples: [["*.example.com:8443"]] },
  "sandbox.unixSockets": {
    meaning:
      "Whether servers may use Unix sockets under `landlock`, which cannot hide those of other programs. Under `bwrap`, they always may.",
    examples: [true],
  },
  "sandbox.memory": { meaning: "A server's memory. See [Limits](security.md#limits-of-a-server).", examples: ["2gb"] },
  "sandbox.processes": { meaning: "The number of processes and threads of each server.", examples: [500] },
  "sandbox.openFiles": { meaning: "The number of open files of each process of a server.", examples: [4096] },
  "sandbox.cpu": { meaning: "The processor time of each server, as a number of processors.", examples: [1.5] },
  "sandbox.disk": { meaning: "The size of the home and of the temporary folder of each server.", examples: ["10gb"] },
} as const satisfies Partial<ValueTexts>;

/** No command loads this table. `npm run schemas` writes it into schemas/config.json and docs/configuration-keys.md. */
export const SECTIONS: SectionTexts = {
  ports: { meaning: "The ports that servers may use." },
  pool: { meaning: "The servers as a group." },
  runtime: { meaning: "The Copilot program that each server runs." },
  auth: { meaning: "The source of each user's GitHub token, for GitHub's own models. Set at most one source." },
  "auth.githubApp": {
    meaning:
      "A GitHub App whose installation pays for all users. The fleet gets its tokens from GitHub and renews them. Set all three keys.",
  },
  provider: { meaning: "Your own model service. `null` stands for GitHub's own models." },
  session: { meaning: "Sessions and their turns." },
  "session.infinite": {
    meaning: "The SDK's `infiniteSessions`, which shortens a long history. It is always off for ephemeral sessions.",
  },
  sandbox: { meaning: "The boundary that the operating system puts around each server." },
  identity: { meaning: "How users prove to the front door who they are. See [Identity](identity.md)." },
  "identity.github": { meaning: "Users who sign on with their own GitHub tokens. See [GitHub](identity.md#github)." },
  lock: { meaning: "Leases on sessions." },
  health: { meaning: "How `serve` checks and restarts servers." },
  recycle: { meaning: "When `serve` replaces a server by a fresh process with the same home." },
  drain: { meaning: "How servers stop." },
  serve: { meaning: "The supervisor, the front door and the HTTP API." },
  http: { meaning: "The [HTTP API](http.md), whose address is `serve.http`." },
  "serve.tls": {
    meaning:
      "TLS at the front door and at the HTTP API. The files may be replaced while `serve` runs. See [TLS](front-door.md#tls).",
  },
  usage: { meaning: "The [ledger](usage.md) of turns, model requests and tokens." },
  limits: { meaning: "How much users may have at once. `null` removes a limit." },
  "limits.default": { meaning: "The limits of each user." },
  "limits.total": { meaning: "The limits of all users together." },
  events: { meaning: "The [audit log](events.md): who did what, and why." },
  storeOptions: { meaning: "The connection to a store in Redis." },
  host: { meaning: "This host, in a fleet of several hosts." },
  "host.tls": {
    meaning: "TLS from this host to the front doors of others. See [Many hosts](hosts.md#tls-between-hosts).",
  },
  storage: { meaning: "The session state of a fleet of several hosts." },
};

export const DESCRIPTIONS: ValueTexts = { ...OF_SERVERS, ...OF_OPERATION };

/** The description of a section. */
interface SectionDescription {
  /** One sentence. */
  meaning: string;
}

/** The description of a key that has a value. */
export interface KeyDescription extends SectionDescription {
  /** Values that are allowed. */
  examples: readonly [unknown, ...unknown[]];
  /** The default in words, if it depends on other keys. */
  default?: string;
}

/** Whether a key has a value, and is not a section. Also true for an object whose keys the user chooses. */
type IsValue<Input> = Input extends string | number | boolean | readonly unknown[] | SecretReference
  ? true
  : string extends keyof Input
    ? true
    : false;

/** The dotted names of all keys that have a value, and of all sections. */
type Names<Input, Prefix extends string = ""> = {
  [Part in keyof Input & string]-?: IsValue<NonNullable<Input[Part]>> extends true
    ? { value: `${Prefix}${Part}`; section: never }
    : {
        value: Names<NonNullable<Input[Part]>, `${Prefix}${Part}.`>["value"];
        section: `${Prefix}${Part}` | Names<NonNullable<Input[Part]>, `${Prefix}${Part}.`>["section"];
      };
}[keyof Input & string];

/** The dotted names of all keys that have a value, with their descriptions. */
type ValueTexts = Readonly<Record<Names<ConfigInput>["value"], KeyDescription>>;

/** The dotted names of all sections, with their descriptions. */
type SectionTexts = Readonly<Record<Names<ConfigInput>["section"], SectionDescription>>;
