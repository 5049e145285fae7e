import type { LoadedConfig } from "../../config/load/load.js";
import { isFleetError } from "../../errors.js";
import { Events } from "../../events/events.js";
import { limitTexts, NO_SANDBOX, PROTECTIONS, type SandboxReport, separates } from "../../model/sandbox.js";
import { tokenSourceFromConfig } from "../../models/github-token.js";
import { tokensOf } from "../../models/github-tokens.js";
import { keySourceOf, ProviderKey } from "../../models/provider-key.js";
import { chooseLimits } from "../../sandbox/limits/limits.js";
import { ACCEPT_WEAKER, acceptWeaker, refuseWeaker } from "../../sandbox/remembered.js";
import { findPossible, sandboxNow, toolSettings, withNetwork } from "../../sandbox/sandbox.js";
import { adviceOf, type Finding, failed, ok, type Row, warning } from "./checks.js";
import { networkProblem } from "./network.js";
import { serviceAnswers } from "./service.js";

export interface SettingsContext extends LoadedConfig {
  env: NodeJS.ProcessEnv;
  /** Do not use the network. */
  quick: boolean;
  /** Let servers start in the sandbox that works now, even if it is weaker than the one of the last start. */
  acceptWeakerSandbox: boolean;
  signal: AbortSignal;
}

/** The checks of the configuration, without the fleet's state. */
export const SETTINGS: readonly Row<SettingsContext>[] = [
  { name: "isolation", look: isolationOf },
  { name: "sandbox", look: sandboxWorks },
  { name: "limits", look: limitsHold },
  { name: "model", look: modelAnswers },
];

/** Reports how users are separated. Warns if a user's agent or client can run programs that read the state of others. */
async function isolationOf({ config, env }: SettingsContext): Promise<Finding> {
  const { isolation } = config;
  if (isolation === "shared") return ok("shared: clients of one server are separated by the front door's rules");
  const own = "per-user: each server has its own home, history and token";
  if (separates(await sandboxNow(config, env)))
    return ok(`${own}, and a sandbox keeps those of other users out of its reach`);
  const detail =
    `${own}, but all servers run as one operating-system user, and no sandbox separates them. ` +
    'An agent with a shell, or a client with session.host "owner", can read everything that the fleet\'s account can read, ' +
    "including other users' conversations and keys";
  const open = toolSettings(config);
  if (open.length === 0) return ok(detail);
  const fix = 'If you do not trust all users and their agents, set "session": {"host": "none", "approve": "none"}.';
  return warning(`${detail}. Here, ${open.join(" and ")}`, fix);
}

/** Reports the sandbox that servers get, and what an agent in this sandbox can still do. */
async function sandboxWorks(context: SettingsContext): Promise<Finding> {
  const { config, env, stateRoot } = context;
  const { mode } = config.sandbox;
  if (mode === "none") return ok('none, because sandbox.mode is "none"');
  const { mechanism, reasons, network, failure: open } = await findPossible(config, env);
  const problem = await networkProblem(config, { failure: open, stateRoot });
  if (problem !== null) return problem;
  const report = await sandboxNow(config, env);
  const needing = toolSettings(config);
  const isNeeded = mode !== "auto" || needing.length > 0;
  if (report.mode !== "none" || !isNeeded) {
    const found = withNetwork(mechanism ?? NO_SANDBOX, network);
    const weaker = await weakerSandbox(context, found, open === null ? reasons : [...reasons, open]);
    if (weaker !== null) return weaker;
  }
  if (report.mode !== "none") {
    const items = [
      ...reasons,
      ...(open === null ? [] : [`sandbox.network "public" does not work, because ${open}`]),
      ...report.not.map((lacking) => `an agent can ${PROTECTIONS[lacking]}`),
    ];
    const restricted = report.network === undefined ? "" : `, and sandbox.network "${report.network}"`;
    const detail = `${report.mode} works${restricted}`;
    if (!report.not.includes("unix-sockets")) return { level: "ok", detail, items };
    // Through a socket of tmux, systemd or Docker, an agent starts programs outside of its sandbox.
    const fix = config.sandbox.unixSockets
      ? 'Set sandbox.unixSockets to false, or install bubblewrap and set sandbox.mode to "auto".'
      : "Run the fleet under an account with no other programs: no tmux, no systemd session, not in the group docker.";
    return { level: "warning", detail: `${detail}, but agents reach the Unix sockets of other programs`, items, fix };
  }
  const fix =
    mode === "bwrap"
      ? "Install bubblewrap, and let the fleet's account use user namespaces."
      : "cat /sys/kernel/security/lsm  # must contain landlock; then update the kernel to 6.12 or later";
  const what = mode === "auto" ? "no sandbox works" : `${mode} does not work`;
  const why = mode === "auto" && isNeeded ? `, and ${needing.join(" and ")}, so no server starts` : "";
  return { level: isNeeded ? "failed" : "warning", detail: `${what} on this machine${why}`, items: reasons, fix };
}

/** The problem that only a weaker sandbox works than at the last start; null if there is none. */
async function weakerSandbox(
  { config, env, stateRoot, acceptWeakerSandbox }: SettingsContext,
  found: Pick<SandboxReport, "mode" | "not">,
  reasons: readonly string[],
): Promise<Finding | null> {
  try {
    refuseWeaker(stateRoot, found, { config, env, reasons });
    return null;
  } catch (error) {
    if (!isFleetError(error, "FLEET_SANDBOX_UNUSABLE")) throw error;
    if (!acceptWeakerSandbox) return failed(error.message, ACCEPT_WEAKER);
    const store = { hosts: null };
    const events = new Events({ store, config, stateRoot, via: "command", warn: () => undefined });
    try {
      await acceptWeaker(stateRoot, found, events);
    } finally {
      await events.flush();
    }
    return { ...warning(`${error.message} From now on, servers start like this`), fixed: true };
  }
}

/** Reports the limits of each server, and warns of those that nothing on this machine can enforce. */
function limitsHold({ config }: LoadedConfig): Finding {
  const limits = chooseLimits(config.sandbox.limits, "doctor")?.report;
  if (limits === undefined) return ok("none: a server may use as much as the machine has");
  const detail = `${limitTexts(limits).join(", ")} (by ${limits.by})`;
  if (limits.notHeld.length === 0) return ok(detail);
  const fix = "Run serve as a systemd service with Delegate=yes, or as root. See docs/security.md, Limits of a server.";
  return warning(detail, fix);
}

/** Checks that prompts can reach a model. Runs no token command. */
async function modelAnswers({ config, env, quick, signal }: SettingsContext): Promise<Finding> {
  const { provider, auth } = config;
  try {
    if (provider?.type === "echo") return ok("the built-in echo model");
    if (provider !== null) {
      const key = keySourceOf(provider);
      const apiKey = key === null || key.from === "command" ? null : await new ProviderKey(key, env).get();
      const proxy = config.runtime.env.find((name) => /^https_proxy$/i.test(name) && (env[name] ?? "") !== "");
      return await serviceAnswers({ provider, key, apiKey, model: config.session.model, proxy, quick });
    }
    const [setting] = Object.entries(auth).find(([, value]) => value !== null) ?? [];
    if (setting === undefined) {
      return warning(
        "none: neither provider nor auth is set, so only servers that were started with a GitHub token answer prompts",
        "copilotfleet init # or give one server a token with spawn --token-env VAR",
      );
    }
    if (auth.githubApp !== null && quick) return ok("GitHub App from auth.githubApp; --quick does not ask GitHub");
    const isOfUsers = auth.githubTokenFile !== null || auth.githubTokenCommand !== null;
    if (!isOfUsers && auth.githubTokenEnv?.includes("{user}") !== true) {
      const source = tokenSourceFromConfig(auth, null);
      if (source !== null) await tokensOf(config, env).get(source, { user: null, signal });
    }
    if (auth.githubApp !== null) return ok("GitHub App from auth.githubApp; GitHub gave a token");
    return ok(`GitHub token from auth.${setting}; only a prompt shows whether GitHub accepts it`);
  } catch (error) {
    if (!isFleetError(error)) throw error;
    return warning(error.message, adviceOf(error.suggestions));
  }
}
