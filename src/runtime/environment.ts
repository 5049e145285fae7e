import { LAUNCH_VARIABLE } from "./process-table.js";

/** Names the fleet (its state folder) that a process belongs to, so that processes no registry knows can be found. */
export const FLEET_VARIABLE = "COPILOTFLEET_OWNER";

/**
 * The variable that carries the GitHub token into a server; its name goes on argv (`--auth-token-env`), never its value.
 * The runtime removes this name, and no name of ours, from the environment of tools and MCP servers (measured with 1.0.85).
 */
export const GITHUB_TOKEN_VARIABLE = "COPILOT_GITHUB_TOKEN";

/** What a server gets of the caller's environment without being asked: where programs are, language, trust roots. */
const ALLOWED = [
  "PATH",
  "LANG",
  "LANGUAGE",
  "LC_ALL",
  "LC_CTYPE",
  "LC_MESSAGES",
  "TZ",
  "TMPDIR",
  "SHELL",
  "USER",
  "LOGNAME",
  "SSL_CERT_FILE",
  "SSL_CERT_DIR",
  "NODE_EXTRA_CA_CERTS",
  "COPILOT_OFFLINE",
  "COPILOT_API_URL",
  "COPILOT_DEBUG_GITHUB_API_URL",
];

/**
 * Offline, the full CLI (1.0.102) exits at once unless the environment names a provider and a model. The fleet sends the
 * real provider with each session, so these only have to be there. Nothing listens at this address (port 9 is "discard").
 * The bundled runtime (1.0.85) ignores them.
 */
const OFFLINE_PROVIDER = { COPILOT_PROVIDER_BASE_URL: "http://127.0.0.1:9/v1", COPILOT_MODEL: "none" };

export interface ServerEnvironment {
  home: string;
  connectionToken: string;
  launchId: string;
  stateRoot: string;
  githubToken: string | null;
  /** Names of further variables of the caller's environment to pass on (`runtime.env`). */
  pass: readonly string[];
}

/**
 * The whole environment of a server. `HOME` is the server's own home too: what a tool reads or leaves in its home
 * folder is then the user's, never the operator's (`HOME` in `runtime.env` gives the operator's back).
 */
export function serverEnvironment(options: ServerEnvironment, caller: NodeJS.ProcessEnv): Record<string, string> {
  const environment: Record<string, string> = { HOME: options.home };
  for (const name of [...ALLOWED, ...options.pass]) {
    const value = caller[name];
    if (value !== undefined) environment[name] = value;
  }
  if ((environment.COPILOT_OFFLINE ?? "") !== "") {
    for (const [name, value] of Object.entries(OFFLINE_PROVIDER)) environment[name] ??= value;
  }
  environment.COPILOT_HOME = options.home;
  environment.COPILOT_CONNECTION_TOKEN = options.connectionToken;
  environment[LAUNCH_VARIABLE] = options.launchId;
  environment[FLEET_VARIABLE] = options.stateRoot;
  if (options.githubToken !== null) environment[GITHUB_TOKEN_VARIABLE] = options.githubToken;
  return environment;
}
