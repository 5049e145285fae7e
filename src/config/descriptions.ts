import type { ConfigInput } from "./schema.js";

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

/** The dotted names of all keys that have a value, and of all sections. */
type Names<Input, Prefix extends string = ""> = {
  [Part in keyof Input & string]-?: NonNullable<Input[Part]> extends string | number | boolean | readonly unknown[]
    ? { value: `${Prefix}${Part}`; section: never }
    : {
        value: Names<NonNullable<Input[Part]>, `${Prefix}${Part}.`>["value"];
        section: `${Prefix}${Part}` | Names<NonNullable<Input[Part]>, `${Prefix}${Part}.`>["section"];
      };
}[keyof Input & string];

/** No command loads this table. `npm run schemas` writes it into schemas/config.json and docs/configuration-keys.md. */
export const SECTIONS: Readonly<Record<Names<ConfigInput>["section"], SectionDescription>> = {
  ports: { meaning: "The ports that servers may use." },
  pool: { meaning: "The servers as a group." },
  runtime: { meaning: "The Copilot program that each server runs." },
  auth: { meaning: "The source of each user's GitHub token, for GitHub's own models. Set at most one of these keys." },
  provider: { meaning: "Your own model service. `null` stands for GitHub's own models." },
  session: { meaning: "Sessions and their turns." },
  "session.infinite": {
    meaning: "The SDK's `infiniteSessions`, which shortens a long history. It is always off for ephemeral sessions.",
  },
  sandbox: { meaning: "The boundary that the operating system puts around each server." },
  lock: { meaning: "Leases on sessions." },
  health: { meaning: "How `serve` checks and restarts servers." },
  recycle: { meaning: "When `serve` replaces a server by a fresh process with the same home." },
  drain: { meaning: "How servers stop." },
  serve: { meaning: "The supervisor and the front door." },
  limits: { meaning: "How much users may have at once. `null` removes a limit." },
  "limits.default": { meaning: "The limits of each user." },
  "limits.total": { meaning: "The limits of all users together." },
  storeOptions: { meaning: "The connection to a store in Redis." },
  host: { meaning: "This host, in a fleet of several hosts." },
  storage: { meaning: "The session state of a fleet of several hosts." },
};

export const DESCRIPTIONS: Readonly<Record<Names<ConfigInput>["value"], KeyDescription>> = {
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
  "pool.warm": { meaning: "The number of shared servers that `serve` keeps running without users.", examples: [2] },
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
  "runtime.idleTimeout": {
    meaning: "The runtime's own limit for idle sessions (`--session-idle-timeout`). `null`: the runtime's default.",
    examples: ["1h", null],
  },

  "auth.githubTokenEnv": {
    meaning: "The variable that contains the GitHub token. `{user}` stands for the user's id.",
    examples: ["GITHUB_TOKEN_{user}", "GH_TOKEN"],
  },
  "auth.githubTokenFile": {
    meaning: "The file that contains the GitHub token. `{user}` stands for the user's id.",
    examples: ["/run/secrets/copilot/{user}"],
  },
  "auth.githubTokenCommand": {
    meaning:
      "The command that prints the GitHub token. It has 10 s, and gets the user's id as `{user}` and in `COPILOTFLEET_USER`.",
    examples: ["vault read -field=token copilot/{user}", "gh auth token"],
  },

  "provider.type": {
    meaning: "The protocol of the model service, or the built-in echo model, which needs no network.",
    examples: ["openai", "echo"],
  },
  "provider.baseUrl": {
    meaning: "The URL of the model service. Required, unless the type is `echo`.",
    examples: ["http://127.0.0.1:11434/v1", "https://api.openai.com/v1"],
  },
  "provider.apiKeyEnv": {
    meaning: "The variable that contains the key of the model service. `null`: the service needs none.",
    examples: ["OPENAI_API_KEY", null],
  },
  "provider.apiKeyFile": { meaning: "A file with the key, for its owner alone.", examples: ["/run/secrets/model-key"] },
  "provider.apiKeyCommand": {
    meaning:
      "The command that prints the key of the model service. It has 10 s. The fleet runs it again after five minutes, and when the service refuses the key.",
    examples: ["vault read -field=key models/openai"],
  },
  "provider.wireApi": {
    meaning: "The API of the model service, for the types `openai` and `azure`.",
    examples: ["completions", "responses"],
  },

  modelGateway: {
    meaning:
      "Whether the provider's key stays out of servers. With `on`, servers reach the model service through the fleet, which adds the key. See [The model gateway](security.md#the-model-gateway).",
    examples: ["on", "off"],
  },

  "session.model": {
    meaning: "The model of sessions whose creator names none. `null`: the runtime chooses one of the account's models.",
    examples: ["gpt-5", null],
    default: '`"gpt-5"` with a provider, `null` without one',
  },
  "session.ttl": { meaning: "How long after its last use `gc` keeps a session.", examples: ["24h", "30d"] },
  "session.maxActive": { meaning: "The number of sessions that one server may have in memory.", examples: [50] },
  "session.approve": {
    meaning: "Which tool calls of a model run. See [Tools and files](configuration.md#tools-and-files).",
    examples: ["none", "ask"],
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
  "sandbox.network": { meaning: "The hosts that servers reach. See [Security](security.md).", examples: ["none"] },
  "sandbox.allow": { meaning: "The hosts of `allow-list`, as `HOST[:PORT]`.", examples: [["*.example.com:8443"]] },
  "sandbox.memory": { meaning: "A server's memory. See [Limits](security.md#limits-of-a-server).", examples: ["2gb"] },
  "sandbox.processes": { meaning: "The number of processes and threads of each server.", examples: [500] },
  "sandbox.openFiles": { meaning: "The number of open files of each process of a server.", examples: [4096] },
  "sandbox.cpu": { meaning: "The processor time of each server, as a number of processors.", examples: [1.5] },
  "sandbox.disk": { meaning: "The size of the home and of the temporary folder of each server.", examples: ["10gb"] },
  "sandbox.tools": { meaning: "The sandbox of each tool. See [Security](security.md).", examples: ["bwrap"] },

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
  "health.session": { meaning: "Whether some probes also create and delete a session.", examples: [true] },
  "health.startup": { meaning: "How long a server may take to start.", examples: ["30s"] },
  "health.restarts": {
    meaning: "The number of crashes in a row after which a server is abandoned.",
    examples: [5],
  },
  "health.backoff": {
    meaning: "The delay before the second restart in a row. It doubles each time, up to a minute.",
    examples: ["1s"],
  },
  "health.stable": { meaning: "How long a server has to run before its crashes are forgotten.", examples: ["60s"] },
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
  "recycle.maxSessions": {
    meaning:
      "The number of sessions that a server has loaded so far, above which it is replaced. `null`: without limit.",
    examples: [1000, null],
  },
  "recycle.pause": { meaning: "The shortest time between two attempts at one server.", examples: ["60s"] },

  "drain.timeout": { meaning: "How long running turns may take to end.", examples: ["30s"] },

  "serve.listen": {
    meaning: "The address of the front door. Port 0 is any free port. `null`: no front door.",
    examples: ["127.0.0.1:4300", null],
  },
  "serve.accessLog": {
    meaning: "Whether the log has a line for each request at the front door, without its content.",
    examples: [true],
  },
  "serve.metrics": { meaning: "The address of metrics and health checks.", examples: ["127.0.0.1:9464"] },
  "serve.gcInterval": { meaning: "The time between two runs of `gc`.", examples: ["1h"] },
  "serve.maxFrame": {
    meaning: "The size of the longest message of a client, from 64 kB to 256 MB.",
    examples: ["8mb"],
  },
  "serve.proxyProtocol": {
    meaning:
      "Whether each connection to the front door begins with a PROXY protocol v2 header, in which a proxy names the client.",
    examples: [true],
  },
  "serve.turnWait": {
    meaning: "How long a prompt may wait at the front door while others use its session.",
    examples: ["30s"],
  },
  "serve.logMaxSize": { meaning: "The size at which a server's log is rotated.", examples: ["10mb"] },
  "serve.logFiles": { meaning: "The number of rotated logs to keep for each server.", examples: [3] },

  "limits.default.connections": { meaning: "The number of open connections to the front door.", examples: [16, null] },
  "limits.default.sessions": { meaning: "The number of sessions in all states.", examples: [1000, null] },
  "limits.default.requestsInFlight": {
    meaning: "The number of unanswered requests at the front door.",
    examples: [2000, null],
  },
  "limits.default.unreadBytes": {
    meaning: "The size of the data in the front door's buffers.",
    examples: ["64mb", null],
  },
  "limits.total.connections": { meaning: "The number of open connections to the front door.", examples: [1024, null] },
  "limits.total.sessions": { meaning: "The number of sessions in all states.", examples: [100_000, null] },
  "limits.total.requestsInFlight": {
    meaning: "The number of unanswered requests at the front door.",
    examples: [20_000, null],
  },
  "limits.total.unreadBytes": {
    meaning: "The size of the data in the front door's buffers.",
    examples: ["512mb", null],
  },

  store: {
    meaning: "The place of the recorded state: files, or a Redis database. See [State in Redis](redis.md).",
    examples: ["file", "rediss://redis.example:6379/0"],
  },
  "storeOptions.insecure": {
    meaning: "Whether the fleet may reach Redis on another host without TLS.",
    examples: [true],
  },

  "host.name": {
    meaning: "The name of this host. `null`: the name that it had before, or otherwise the machine's name.",
    examples: ["host-1", null],
  },
  "host.advertise": {
    meaning: "The address at which other hosts reach this host's front door. `null`: the one at which it listens.",
    examples: ["10.0.0.1:4300", null],
  },
  "host.ttl": {
    meaning: "How long after its last heartbeat a host counts as gone, from 3 s to 10 minutes.",
    examples: ["15s"],
  },

  "storage.shared": {
    meaning: "The folder that all hosts mount for session state. `null`: each host uses its own disk.",
    examples: ["/mnt/fleet", null],
  },

  user: {
    meaning:
      "The default for `--user` in commands that act as a user. It does not limit commands such as `list`, `stop` and " +
      "`delete`. The library does not read it.",
    examples: ["alice"],
  },
};
