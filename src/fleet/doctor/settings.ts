import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { LoadedConfig } from "../../config/load/load.js";
import type { RemoteProvider } from "../../config/schema.js";
import { isFleetError, quote, type Suggestion } from "../../errors.js";
import { resolveGitHubToken, tokenSourceFromConfig } from "../../models/github-token.js";
import { resolveProvider } from "../../models/provider.js";
import { findRuntime } from "../../runtime/launch/find.js";
import { connectProblem } from "../../runtime/launch/reach.js";
import { packageVersion } from "../../runtime/launch/versions.js";
import { Fleet } from "../fleet.js";
import { adviceOf, type Finding, ok, type Row, warning } from "./checks.js";

export interface SettingsContext extends LoadedConfig {
  env: NodeJS.ProcessEnv;
}

const CONNECT_MS = 2_000;

/** The checks of the configuration, without the fleet's state. */
export const SETTINGS: readonly Row<SettingsContext>[] = [
  { name: "isolation", look: isolationOf },
  { name: "runtime", look: runtimeStarts },
  { name: "model", look: modelAnswers },
];

/** Reports how users are separated. Warns if a user's agent or client can run programs that read the state of others. */
function isolationOf({ config: { isolation, session } }: LoadedConfig): Finding {
  if (isolation === "shared") return ok("shared: clients of one server are separated by the front door's rules");
  const detail =
    "per-user: each server has its own home, history and token, but all servers run as one operating-system user. " +
    'An agent with a shell, or a client with session.host "owner", can read everything that the fleet\'s account can read, ' +
    "including other users' conversations and keys";
  const open = [
    ...(session.host === "owner" ? ['session.host is "owner"'] : []),
    ...(session.approve === "none" ? [] : [`session.approve is "${session.approve}"`]),
  ];
  if (open.length === 0) return ok(detail);
  const fix = 'If you do not trust all users and their agents, set "session": {"host": "none", "approve": "none"}.';
  return warning(`${detail}. Here, ${open.join(" and ")}`, fix);
}

/** Starts the runtime in a temporary folder and asks for its version, because a file that exists may still not run. */
async function runtimeStarts({ config, env }: SettingsContext): Promise<Finding> {
  const runtime = findRuntime(config.runtime.path, env);
  const folder = await mkdtemp(join(tmpdir(), "copilotfleet-doctor-"));
  try {
    await using trial = await Fleet.open({
      cwd: folder,
      env: { ...env, COPILOTFLEET_HOME: join(folder, "state") },
      config: {
        runtime: { path: runtime.path },
        // The trial must not touch the fleet's store, storage or tokens.
        store: "file",
        storage: { shared: null },
        auth: { githubTokenEnv: null, githubTokenFile: null, githubTokenCommand: null },
      },
    });
    const { server } = await trial.servers.spawn("doctor");
    await trial.servers.stop([server.id], { force: true });
    const version = packageVersion(runtime.path);
    const from = version === null ? runtime.origin : `${runtime.origin}, package ${version}`;
    return ok(`${runtime.path} (${from}) starts and answers as version ${server.version}`);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Checks that prompts can reach a model. May connect to its address, but sends no key and runs no token command. */
async function modelAnswers({ config, env }: SettingsContext): Promise<Finding> {
  const { provider, auth } = config;
  try {
    if (provider?.type === "echo") return ok("the built-in echo model");
    if (provider !== null) {
      resolveProvider(provider, env);
      return await providerAnswers(provider, config.runtime.env, env);
    }
    const [setting] = Object.entries(auth).find(([, value]) => value !== null) ?? [];
    if (setting === undefined) {
      return warning(
        "none: neither provider nor auth is set, so only servers that were started with a GitHub token answer prompts",
        "Set provider or auth in .copilotfleet.json, or give a server a token with spawn --token-env VAR.",
      );
    }
    const source = auth.githubTokenEnv?.includes("{user}") === false ? tokenSourceFromConfig(auth, null) : null;
    if (source !== null) await resolveGitHubToken(source, { user: null, env });
    return ok(`GitHub token from auth.${setting}`);
  } catch (error) {
    if (!isFleetError(error)) throw error;
    return warning(error.message, adviceOf(error.suggestions));
  }
}

async function providerAnswers(
  { type, baseUrl }: RemoteProvider,
  passedOn: readonly string[],
  env: NodeJS.ProcessEnv,
): Promise<Finding> {
  const url = new URL(baseUrl);
  const isSecure = url.protocol === "https:";
  const proxy = passedOn.find((name) => /^https_proxy$/i.test(name) && env[name] !== undefined && env[name] !== "");
  const service = `provider of type ${type} at ${url.host}`;
  if (isSecure && proxy !== undefined) return ok(`${service}; not tried, because servers reach it through ${proxy}`);
  const port = url.port === "" ? (isSecure ? 443 : 80) : Number(url.port);
  const problem = await connectProblem({ host: url.hostname.replace(/^\[|\]$/g, ""), port }, CONNECT_MS);
  if (problem === null) return ok(`${service} accepts connections`);
  const fix: Suggestion = `Start the service, or correct provider.baseUrl (${quote(baseUrl)}).`;
  return warning(`${service} cannot be reached: ${problem}`, fix);
}
