import { rows } from "./entry.js";

const UNTOUCHED = { httpStatus: 500, data: "Nothing was changed. Sessions and their histories are untouched." };

/** The configuration, the installation or the machine does not meet the fleet's needs. */
export const CONFIGURATION_ERRORS = rows(3, UNTOUCHED, {
  FLEET_CONFIG_INVALID: {
    title: "A setting has a value that is not allowed, or a configuration file cannot be read or has an unknown key.",
    causes: [
      "The message names the key or the variable, where it was set, its value and the values that are allowed.",
      "A key is misspelled, or a newer version of copilotfleet knows it.",
      "--cwd or sandbox.binds names a folder that has the fleet's state, configuration or token files, or programs or settings of the machine, such as /usr or /etc.",
    ],
    fixes: [
      "Correct the value in the place that the message names.",
      "copilotfleet config check",
      "copilotfleet config show # lists all keys",
    ],
  },
  FLEET_CONFIG_UNTRUSTED: {
    title: "A project's configuration file sets keys that you have to allow first.",
    causes: [
      "A .copilotfleet.json in or above the working folder names programs, variables, addresses or a store.",
      "Somebody else may have written the file, or it has changed since you trusted it.",
    ],
    fixes: [
      "cat PATH",
      "copilotfleet trust PATH # after you have read the file",
      "Set the keys in your own configuration file instead.",
    ],
  },
  FLEET_PLATFORM_UNSUPPORTED: {
    title: "This operating system or this version of Node.js is not supported.",
    causes: [
      "copilotfleet runs on Linux, because it identifies processes and reads the folders of servers in ways that only Linux supports.",
      "It runs on Node.js 20.19 or later, or 22.12 or later.",
    ],
    fixes: ["Run it in a Linux container or virtual machine.", "node --version", "Install Node.js 22.12 or later."],
  },
  FLEET_RUNTIME_UNUSABLE: {
    title: "The Copilot runtime was not found, cannot be started, or has a version that the fleet does not support.",
    causes: [
      "runtime.path or COPILOT_CLI_PATH names a file that does not exist, that this user may not run on this machine, or that is too old or too new.",
      "The SDK was installed without its optional package for this platform.",
      "The machine has no processes, file descriptors or memory left.",
    ],
    fixes: [
      "copilotfleet doctor",
      "Remove runtime.path and COPILOT_CLI_PATH to use the bundled runtime.",
      "npm install --include=optional # add --global if copilotfleet is installed globally",
      "ulimit -n; ulimit -u; free -m",
    ],
  },
  FLEET_SANDBOX_UNUSABLE: {
    title: "The sandbox that the settings need, or that the last server had, does not work on this machine.",
    causes: [
      "A program that makes the sandbox exists and cannot run, for example because an agent changed its mode.",
      "Only a weaker sandbox works than the one that servers on this host had.",
      "session.approve or session.host lets agents or clients run programs, and no sandbox works.",
      "The kernel has no Landlock (it needs Linux 5.13 or later, with landlock in its list of security modules).",
      "Neither the launcher in the package nor setpriv of util-linux 2.41 can run.",
      "The fleet runs as root and bwrap does not work. Landlock alone cannot restrict root.",
      "For bwrap: the program bwrap is not installed, or the kernel, the container or a policy allows no user namespaces.",
      "For sandbox.network: the launcher cannot run, the account may make no network namespaces, or the proxy does not start.",
      'For sandbox.network "public": passt is not installed, or the account cannot open /dev/net/tun.',
    ],
    fixes: [
      "copilotfleet doctor",
      'Set sandbox.mode to "auto" for the best sandbox that works here.',
      "copilotfleet doctor --accept-weaker-sandbox # if no agent can be the cause",
      'If everybody who reaches the fleet may use its account: set sandbox.mode to "none".',
      "cat /sys/kernel/security/lsm # must contain landlock",
      "For bwrap: install bubblewrap, and let the fleet's account use user namespaces.",
      "For sandbox.network: run serve as root with CAP_SYS_ADMIN, or let the fleet's account use user namespaces.",
      'For sandbox.network "public": install the package passt.',
    ],
  },
  FLEET_PROTOCOL_UNSUPPORTED: {
    title: "Two versions do not understand each other.",
    causes: [
      "The client's SDK is older or newer than the ones that the front door knows.",
      "Two hosts have versions of copilotfleet that do not understand each other.",
      "A newer version of copilotfleet wrote the state. The older one changed nothing.",
    ],
    fixes: [
      "npm install @github/copilot-sdk@1 # in the client's project",
      "copilotfleet --version # on each host; the versions must be the same",
      "npm install --global copilotfleet@latest",
    ],
  },
  FLEET_STATE_UNSAFE: {
    title: "Another user could change the fleet's state or its logs.",
    causes: ["The state folder or a log belongs to another user, is a link, or can be written by others."],
    fixes: [
      "ls -ld PATH # the path in the message",
      "chmod go-w PATH",
      "sudo -u OWNER copilotfleet ps # as the account that owns PATH",
      "Choose another folder: COPILOTFLEET_HOME.",
    ],
  },
  FLEET_ADDRESS_UNUSABLE: {
    title: "serve cannot listen on the configured address.",
    causes: ["The address does not belong to this machine.", "This user may not open the port."],
    fixes: [
      "ip -brief address # serve.listen and serve.metrics must name one of these addresses",
      "Choose a port from 1024 to 65535. Lower ones need privileges.",
      "COPILOTFLEET_SERVE_LISTEN=127.0.0.1:0 copilotfleet serve # to start at once, at a free port",
    ],
  },
  FLEET_STORE_UNUSABLE: {
    title: "This Redis, or this host's key for its records, cannot be used.",
    data: "Nothing was changed. The histories are in files and not in Redis.",
    causes: [
      "Redis could lose or hide parts of the state: it evicts keys when its memory is full, is too old, or is a cluster node without the fleet's slot.",
      "The user or the password (storeOptions.password) is wrong, or Redis forbids the user a command that is needed.",
      "Another host made the key for the records, and it was not copied to this host.",
      "A line of the file with the key is not a key.",
    ],
    fixes: [
      "redis-cli -u URL CONFIG SET maxmemory-policy noeviction # and set it in redis.conf, too",
      "redis-cli -u URL PING",
      "Correct the user and the password (storeOptions.password), and allow the user the commands in docs/redis.md.",
      "Copy the file store-key from the state folder of another host, and name the copy in storeOptions.key.",
      "copilotfleet store sign --all # only if no host has the key",
    ],
  },
  FLEET_TOKEN_UNAVAILABLE: {
    title: "The source of the token gave no valid token.",
    causes: [
      "The variable is not set, the file cannot be read, or the command that prints the token failed.",
      "The text has more than one line, other characters, or is too long.",
      "Others may read the file.",
    ],
    fixes: [
      "Set the variable, or correct auth.githubToken.",
      "Put one token, and nothing else, into the source.",
      "chmod 600 FILE",
      "copilotfleet doctor",
    ],
  },
  FLEET_MODEL_UNCONFIGURED: {
    title: "The server has no model to answer with.",
    data: "Sessions and their histories are untouched. If create fails with this, its message states whether the session exists.",
    causes: ["Neither a GitHub token nor a model provider is configured, or the provider's key cannot be read."],
    fixes: [
      "copilotfleet init # asks for the models to use, and writes the configuration",
      "COPILOTFLEET_PROVIDER_TYPE=echo copilotfleet create --user USER --prompt hello # needs no account",
      "copilotfleet spawn --user USER --token-env GITHUB_TOKEN # for a user without a server",
    ],
  },
});
