import { rows } from "./entry.js";

const UNTOUCHED = { httpStatus: 500, data: "Nothing was changed. Sessions and their histories are untouched." };

/** The configuration, the installation or the machine does not meet the fleet's needs. */
export const CONFIGURATION_ERRORS = rows(3, UNTOUCHED, {
  FLEET_CONFIG_INVALID: {
    title: "A setting has a value that is not allowed, or a configuration file cannot be read.",
    causes: ["The message names the key or the variable, where it was set, its value and the values that are allowed."],
    fixes: ["Correct the value in the place that the message names.", "copilotfleet config check"],
  },
  FLEET_CONFIG_KEY_UNKNOWN: {
    title: "A configuration file has a key that does not exist.",
    causes: ["The key is misspelled, or a newer version of copilotfleet knows it."],
    fixes: [
      "Correct the key, or remove it.",
      "copilotfleet config show # lists all keys",
      "npm install --global copilotfleet@latest",
    ],
  },
  FLEET_STORE_KEY_UNUSABLE: {
    title: "This host has no key for the records in Redis, or the file of the key cannot be used.",
    causes: ["Another host made the key, and it was not copied to this host.", "A line of the file is not a key."],
    fixes: [
      "Copy the file store-key from the state folder of another host, and name the copy in storeOptions.key.",
      "copilotfleet store sign --all # only if no host has the key",
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
  FLEET_NODE_UNSUPPORTED: {
    title: "This version of Node.js is not supported.",
    causes: ["copilotfleet runs on Node.js 20.19 or later, or 22.12 or later."],
    fixes: ["node --version", "Install Node.js 22.12 or later."],
  },
  FLEET_PLATFORM_UNSUPPORTED: {
    title: "This operating system is not supported.",
    causes: ["The fleet identifies processes and reads the folders of servers in ways that only Linux supports."],
    fixes: ["Run it in a Linux container or virtual machine."],
  },
  FLEET_RUNTIME_MISSING: {
    title: "The Copilot runtime was not found.",
    causes: [
      "runtime.path or COPILOT_CLI_PATH names a file that does not exist.",
      "The SDK was installed without its optional package for this platform.",
    ],
    fixes: [
      "copilotfleet doctor",
      "unset COPILOT_CLI_PATH",
      "npm install --include=optional # add --global if copilotfleet is installed globally",
    ],
  },
  FLEET_RUNTIME_UNUSABLE: {
    title: "The Copilot runtime cannot be started.",
    causes: [
      "The file is not a program that this user may run on this machine.",
      "The machine has no processes, file descriptors or memory left.",
    ],
    fixes: ["copilotfleet doctor", "ulimit -n; ulimit -u; free -m"],
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
  FLEET_SANDBOX_UNSAFE: {
    title: "A folder for a server would expose secrets, or let the server change programs outside of its sandbox.",
    causes: [
      "--cwd or sandbox.binds names a folder that contains the fleet's state, configuration or token files, or is in one of them.",
      "The server could change programs or settings of the machine, such as /usr or /etc, or the code of the fleet.",
    ],
    fixes: ["Choose a folder that has only files for this user.", "copilotfleet config path"],
  },
  FLEET_RUNTIME_TOO_OLD: {
    title: "The Copilot runtime is older than the oldest version that the fleet supports.",
    causes: ["runtime.path or COPILOT_CLI_PATH names an old Copilot program."],
    fixes: ["Remove runtime.path and COPILOT_CLI_PATH to use the bundled runtime.", "Update the Copilot program."],
  },
  FLEET_RUNTIME_TOO_NEW: {
    title: "The Copilot runtime speaks a newer protocol than the fleet.",
    causes: ["runtime.path or COPILOT_CLI_PATH names a newer Copilot program than this version knows."],
    fixes: [
      "Remove runtime.path and COPILOT_CLI_PATH to use the bundled runtime.",
      "npm install --global copilotfleet@latest",
    ],
  },
  FLEET_PROTOCOL_UNSUPPORTED: {
    httpStatus: 422,
    title: "The client speaks a protocol version that the front door does not speak.",
    causes: [
      "The client's SDK is older or newer than the ones that the front door knows.",
      "Two hosts have versions of copilotfleet that do not understand each other.",
    ],
    fixes: [
      "npm install @github/copilot-sdk@1 # in the client's project",
      "copilotfleet --version # on each host; the versions must be the same",
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
  FLEET_STATE_NEWER: {
    title: "A newer version of copilotfleet wrote the state.",
    causes: ["Commands of two versions work on the same state. The older one changed nothing."],
    fixes: ["npm install --global copilotfleet@latest", "copilotfleet --version # on each host"],
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
  FLEET_STORE_UNSAFE: {
    title: "This Redis could lose or hide parts of the state.",
    data: "Nothing was changed. The histories are in files and not in Redis.",
    causes: [
      "It evicts keys when its memory is full.",
      "It is too old.",
      "It is a cluster node without the fleet's slot.",
    ],
    fixes: [
      "redis-cli -u URL CONFIG SET maxmemory-policy noeviction # and set it in redis.conf, too",
      "Use a single Redis of a version that the message names.",
    ],
  },
  FLEET_STORE_DENIED: {
    title: "Redis does not let this user in.",
    data: "Nothing was changed. The histories are in files and not in Redis.",
    causes: [
      "The user or the password in the store's URL is wrong, or Redis forbids the user a command that is needed.",
    ],
    fixes: [
      "redis-cli -u URL PING",
      "Correct the user and the password in the store's URL.",
      "Allow the user the commands in docs/redis.md.",
    ],
  },
  FLEET_TOKEN_UNAVAILABLE: {
    title: "The token could not be read from its source.",
    causes: ["The variable is not set, the file cannot be read, or the command that prints the token failed."],
    fixes: ["Set the variable, or correct auth.githubToken.", "copilotfleet doctor"],
  },
  FLEET_TOKEN_INVALID: {
    title: "The source of the token did not give a valid token.",
    causes: ["It has more than one line, other characters, or is too long.", "Others may read the file."],
    fixes: ["Put one token, and nothing else, into the source.", "chmod 600 FILE"],
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
