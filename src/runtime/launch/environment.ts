import { dirname, join } from "node:path";
import type { Config } from "../../config/schema.js";
import { LAUNCH_VARIABLE } from "../../model/process.js";
import { EGRESS_ADDRESS, GATEWAY_END, type RestrictedNetwork, WAY_OUT_PORT } from "../../model/sandbox.js";
import type { ServerRecord } from "../../model/server.js";
import type { Sandbox } from "../../sandbox/sandbox.js";
import { FLEET_VARIABLE } from "../process/launches.js";

/**
 * The variable that passes the GitHub token to a server. The command line contains only the variable's name
 * (`--auth-token-env`). The runtime removes this variable from the environment of tools and MCP servers, but does not remove
 * other variables (measured with 1.0.85).
 */
export const GITHUB_TOKEN_VARIABLE = "COPILOT_GITHUB_TOKEN";

const CONNECTION_TOKEN_VARIABLE = "COPILOT_CONNECTION_TOKEN";

/** The variables that only the runtime itself needs, and only while it starts. */
export const SECRET_VARIABLES = [GITHUB_TOKEN_VARIABLE, CONNECTION_TOKEN_VARIABLE] as const;

/** The variables that every server gets from the caller's environment. Some of them are replaced or removed below. */
const ALLOWED = `PATH LANG LANGUAGE LC_ALL LC_CTYPE LC_MESSAGES TZ TMPDIR SHELL USER LOGNAME SSL_CERT_FILE SSL_CERT_DIR
  NODE_EXTRA_CA_CERTS COPILOT_OFFLINE COPILOT_API_URL COPILOT_DEBUG_GITHUB_API_URL`.split(/\s+/);

/**
 * With `COPILOT_OFFLINE` set, the full CLI (1.0.102) exits unless its environment also names a provider and a model. It
 * never uses these two values, because the fleet sends the real provider with each session.
 */
const OFFLINE_PROVIDER = { COPILOT_PROVIDER_BASE_URL: "http://127.0.0.1:9/v1", COPILOT_MODEL: "none" };

/**
 * A folder beside the home, which the server can read in its sandbox and cannot change. It contains a link to the
 * sessions in the home. The runtime (1.0.85) needs to write nothing else into its `COPILOT_HOME`.
 */
export function closedFolder(home: string): string {
  return join(dirname(home), "copilot");
}

/** One start of a server. */
export interface Launch {
  server: Pick<ServerRecord, "address" | "home" | "cwd">;
  launchId: string;
  runtimePath: string;
  port: number;
  connectionToken: string;
  githubToken: string | null;
  settings: Config["runtime"];
  stateRoot: string;
  sandbox: Sandbox;
  /**
   * The server's `COPILOT_HOME`. The runtime starts the MCP servers and hooks that files there name, without asking. So
   * unless clients may start programs, this is not the home, but a {@link closedFolder}.
   */
  copilotHome: string;
  /** The folder outside the server's home that contains its sessions; null if they are in the home. */
  sessionState: string | null;
  /** The caller's environment. A server gets only a part of it. */
  env: NodeJS.ProcessEnv;
}

/**
 * The folder for the temporary files of a server in a sandbox, because such a server cannot use the system's shared
 * folder. It is beside the home, so that the server cannot remove it.
 */
export function temporaryFolder(home: string): string {
  return join(dirname(home), "tmp");
}

/**
 * The complete environment of a server. `HOME` is the server's home, so that tools do not use the operator's files. To give
 * servers the operator's `HOME`, list `HOME` in `runtime.env`.
 */
export function serverEnvironment(launch: Launch): Record<string, string> {
  const { server, launchId, connectionToken, githubToken, settings, stateRoot, sandbox, copilotHome, env } = launch;
  const environment: Record<string, string> = { HOME: server.home };
  for (const name of [...ALLOWED, ...settings.env]) {
    const value = env[name];
    if (value !== undefined) environment[name] = value;
  }
  if ((environment.COPILOT_OFFLINE ?? "") !== "") {
    for (const [name, value] of Object.entries(OFFLINE_PROVIDER)) environment[name] ??= value;
  }
  if (sandbox.network === undefined) excludeLoopback(environment);
  else restrictProxies(environment, sandbox.network);
  environment.COPILOT_HOME = copilotHome;
  if (sandbox.mode !== "none") environment.TMPDIR = temporaryFolder(server.home);
  environment[CONNECTION_TOKEN_VARIABLE] = connectionToken;
  environment[LAUNCH_VARIABLE] = launchId;
  environment[FLEET_VARIABLE] = stateRoot;
  if (githubToken !== null) environment[GITHUB_TOKEN_VARIABLE] = githubToken;
  return environment;
}

/**
 * Keeps requests to this machine away from proxies, because the echo model and the model gateway listen on this
 * machine. Otherwise the runtime (1.0.85) would send even these requests through a proxy. It would even send plain HTTP
 * requests through the proxy for HTTPS. If both `no_proxy` and `NO_PROXY` are set, the runtime reads only `no_proxy`.
 */
function excludeLoopback(environment: Record<string, string>): void {
  if (!Object.keys(environment).some((name) => /^https?_proxy$/i.test(name))) return;
  const name = environment.no_proxy === undefined ? "NO_PROXY" : "no_proxy";
  const given = environment[name] ?? "";
  environment[name] = given === "" ? LOOPBACK : `${given},${LOOPBACK}`;
}

const LOOPBACK = "127.0.0.1";

/**
 * Removes the caller's proxies, because a server in a network namespace cannot reach them. Sets the fleet's proxy for
 * the allowed hosts instead, if the network has an allow-list.
 */
function restrictProxies(environment: Record<string, string>, network: RestrictedNetwork): void {
  for (const name of Object.keys(environment)) if (/^(https?|all|no)_proxy$/i.test(name)) delete environment[name];
  if (network !== "allow-list") return;
  for (const [name, value] of Object.entries(TO_EGRESS)) environment[name] = environment[name.toUpperCase()] = value;
  environment.NODE_USE_ENV_PROXY = "1"; // Node.js 22.21 and 24.5 or newer
}

const EGRESS = `http://${EGRESS_ADDRESS}:${WAY_OUT_PORT}`;
const TO_EGRESS = {
  http_proxy: EGRESS,
  https_proxy: EGRESS,
  no_proxy: [LOOPBACK, "localhost", "::1", GATEWAY_END].join(","),
};
