import type { ValueTexts } from "./texts.js";

/** The keys of `serve`, of hosts, and of the state. */
export const OF_OPERATION = {
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
  "storeOptions.keyFile": {
    meaning:
      "The file with the key that signs the records in Redis, the same on all hosts. `null`: `store-key` in the state " +
      "folder. See [State in Redis](redis.md#signatures).",
    examples: ["/etc/copilotfleet/store-key", null],
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
