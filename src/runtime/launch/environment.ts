import { FLEET_VARIABLE, LAUNCH_VARIABLE } from "../process/launches.js";

/**
 * The variable that passes the GitHub token to a server. Only its name is in argv (`--auth-token-env`), never its value.
 * The runtime removes this variable from the environment of tools and MCP servers. It would not remove a variable with a
 * name of ours (measured with 1.0.85).
 */
export const GITHUB_TOKEN_VARIABLE = "COPILOT_GITHUB_TOKEN";

/** The caller's variables that every server gets: where programs are, the language, and trusted certificates. */
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
 * real provider with each session, so these values only have to exist. Nothing listens at this address (port 9 is
 * "discard"). The bundled runtime (1.0.85) ignores them.
 */
const OFFLINE_PROVIDER = { COPILOT_PROVIDER_BASE_URL: "http://127.0.0.1:9/v1", COPILOT_MODEL: "none" };

export interface ServerEnvironment {
  home: string;
  connectionToken: string;
  launchId: string;
  stateRoot: string;
  githubToken: string | null;
  /** Names of more variables to pass on from the caller's environment (`runtime.env`). */
  pass: readonly string[];
}

/**
 * The complete environment of a server. `HOME` is the server's own home, too, so tools read and write the user's files
 * there, never the operator's. (`HOME` in `runtime.env` restores the operator's.)
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
