import type { ValueTexts } from "./texts.js";

/** The keys of servers, models and sessions. */
export const OF_SERVERS = {
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
  "auth.githubApp.appId": { meaning: "The App ID, from the settings of the App.", examples: [123456] },
  "auth.githubApp.installationId": {
    meaning: "The number of the App's installation. It ends the address of the installation's page at GitHub.",
    examples: [7654321],
  },
  "auth.githubApp.privateKeyFile": {
    meaning: "The file with the App's private key (PEM), for its owner alone.",
    examples: ["/run/secrets/github-app.pem"],
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
