import { rows } from "./entry.js";

/** The configuration, the installation or the machine does not meet the fleet's needs. */
export const CONFIGURATION_ERRORS = rows(3, 500, {
  FLEET_CONFIG_INVALID: {
    title: "A setting has a value that is not allowed, or a configuration file cannot be read.",
    causes: ["The message names the key or the variable, where it was set, its value and the values that are allowed."],
    fixes: ["Correct the value in the place that the message names.", "copilotfleet doctor"],
  },
  FLEET_CONFIG_KEY_UNKNOWN: {
    title: "A configuration file has a key that does not exist.",
    causes: ["The key is misspelled, or a newer version of copilotfleet knows it."],
    fixes: ["Correct the key, or remove it.", "npm install --global copilotfleet@latest"],
  },
  FLEET_CONFIG_UNTRUSTED: {
    title: "A project's configuration file sets keys that you have to allow first.",
    causes: [
      "A .copilotfleet.json in or above the working folder names programs, variables, addresses or a store.",
      "Somebody else may have written the file, or it has changed since you trusted it.",
    ],
    fixes: ["Read the file, and then: copilotfleet trust PATH", "Set the keys in your own configuration file instead."],
  },
  FLEET_NODE_UNSUPPORTED: {
    title: "This version of Node.js is not supported.",
    causes: ["copilotfleet runs on Node.js 20.19 or later, or 22.12 or later."],
    fixes: ["Install a supported Node.js."],
  },
  FLEET_PLATFORM_UNSUPPORTED: {
    title: "This operating system is not supported.",
    causes: ["The fleet proves the identity of processes in a way that only Linux supports."],
    fixes: ["Run it in a Linux container or virtual machine."],
  },
  FLEET_RUNTIME_MISSING: {
    title: "The Copilot runtime was not found.",
    causes: [
      "runtime.path or COPILOT_CLI_PATH names a file that does not exist.",
      "The SDK was installed without its optional package for this platform.",
    ],
    fixes: ["npm install --include=optional", "Set COPILOT_CLI_PATH to an installed Copilot program."],
  },
  FLEET_RUNTIME_UNUSABLE: {
    title: "The Copilot runtime cannot be started.",
    causes: [
      "The file is not a program that this user may run on this machine.",
      "The machine has no processes, file descriptors or memory left.",
    ],
    fixes: ["copilotfleet doctor", "ulimit -n -u"],
  },
  FLEET_RUNTIME_TOO_OLD: {
    title: "The Copilot runtime speaks an older protocol than the fleet.",
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
      "Install a release of the SDK that speaks a version named in the message.",
      "Use the same version of copilotfleet on all hosts.",
    ],
  },
  FLEET_STATE_UNSAFE: {
    title: "Another user could change the fleet's state or its logs.",
    causes: ["The state folder or a log belongs to another user, is a link, or can be written by others."],
    fixes: [
      "ls -ld the path in the message",
      "chmod 700 the state folder",
      "Choose another folder: COPILOTFLEET_HOME.",
    ],
  },
  FLEET_STATE_NEWER: {
    title: "A newer version of copilotfleet wrote the state.",
    causes: ["Commands of two versions work on the same state. The older one changed nothing."],
    fixes: ["npm install --global copilotfleet@latest"],
  },
  FLEET_ADDRESS_UNUSABLE: {
    title: "serve cannot listen on the configured address.",
    causes: ["The address does not belong to this machine.", "This user may not open the port."],
    fixes: ["COPILOTFLEET_SERVE_LISTEN=127.0.0.1:0 copilotfleet serve"],
  },
  FLEET_STORE_UNSAFE: {
    title: "This Redis could lose or hide parts of the state.",
    causes: [
      "It evicts keys when its memory is full.",
      "It is too old.",
      "It is a cluster node without the fleet's slot.",
    ],
    fixes: [
      "redis-cli CONFIG SET maxmemory-policy noeviction",
      "Use a single Redis of a version that the message names.",
    ],
  },
  FLEET_STORE_DENIED: {
    title: "Redis does not let this user in.",
    causes: [
      "The user or the password in the store's URL is wrong, or Redis forbids the user a command that is needed.",
    ],
    fixes: ["Correct the user and the password in the store's URL.", "Allow the user the commands in docs/redis.md."],
  },
  FLEET_TOKEN_UNAVAILABLE: {
    title: "The token could not be read from its source.",
    causes: ["The variable is not set, the file cannot be read, or the command that prints the token failed."],
    fixes: ["Set the variable, or correct auth.githubTokenFile or auth.githubTokenCommand.", "copilotfleet doctor"],
  },
  FLEET_TOKEN_INVALID: {
    title: "The source of the GitHub token did not give a valid token.",
    causes: ["It has more than one line, other characters, or is too long.", "Others may read the file."],
    fixes: ["Put one GitHub token, and nothing else, into the source.", "chmod 600 FILE"],
  },
  FLEET_MODEL_UNCONFIGURED: {
    title: "The server has no model to answer with.",
    causes: ["Neither a GitHub token nor a model provider is configured, or the provider's key is not set."],
    fixes: [
      "copilotfleet spawn --user USER --token-env GITHUB_TOKEN",
      'Set "provider" or "auth" in .copilotfleet.json.',
      "COPILOTFLEET_PROVIDER_TYPE=echo tries everything without an account.",
    ],
  },
});
