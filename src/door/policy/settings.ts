import { lstatSync, realpathSync } from "node:fs";
import { basename, dirname, isAbsolute, join, resolve } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { type FleetError, quote } from "../../base/errors.js";
import type { Isolation, ServerRecord } from "../../base/server.js";
import { type SessionRecord, toolsOf } from "../../base/session.js";
import { sessionLimitsOf } from "../../base/usage.js";
import type { Config } from "../../config/schema.js";
import { tokenSourceFromConfig } from "../../providers/github-token.js";
import { type Reach, reachesHost } from "../../servers/admission.js";
import type { Params } from "../wire/client-message.js";
import { approvalDenied, hostDenied, methodDenied } from "../wire/refusals.js";
import { decidesOnTools, reachOf, refuseInnerProviders } from "./reach.js";

/** The facts that decide which settings a client may choose for its session, and which settings the fleet adds. */
interface Surroundings extends Reach {
  /** Whether the session belongs to another user, who made this user a member. */
  member: boolean;
  isolation: Isolation;
  /** `COPILOT_HOME` of the server. */
  home: string;
  /**
   * The session's model provider. By default, its key is a token that the model gateway accepts for this session. Null
   * without a provider.
   */
  provider: object | null;
  /**
   * The GitHub token of the session's owner. Null if the server has it for all of its sessions, or if there is a
   * provider.
   */
  gitHubToken: string | null;
}

/** Parameters of `session.resume` that `session.create` does not have. */
const RESUME_ONLY = ["disableResume", "continuePendingWork", "openCanvases", "requestedEnvironmentVariables"];

/**
 * Parameters that a client may set for a session on a server with other users. None of them names a path or a process.
 */
const HARMLESS = new Set(
  `sessionId clientName model reasoningEffort reasoningSummary contextTier systemMessage tools toolSearch commands
  availableTools excludedTools toolFilterPrecedence excludedBuiltinAgents modelCapabilities enableSessionTelemetry
  enableCitations sessionLimits requestPermission requestUserInput requestElicitation askUserVariant requestExitPlanMode
  requestAutoModeSwitch hooks streaming includeSubAgentStreamingEvents envValueMode customAgents customAgentsLocalOnly
  defaultAgent agent skipEmbeddingRetrieval embeddingCacheStorage enableOnDemandInstructionDiscovery enableFileHooks
  enableHostGitOperations enableSessionStore enableSkills mcpOAuthTokenStorage mcpOauthTokenStorage infiniteSessions memory disableResume
  continuePendingWork gitHubToken gitHubTokenProviderRegistrationId traceparent tracestate isExperimentalMode`.split(
    /\s+/,
  ),
);

/**
 * In addition to `HARMLESS`: parameters that a client may set on the user's own server, even if the configuration
 * forbids the client to use files and programs there.
 */
const HARMLESS_ON_OWN = new Set(
  `canvases requestCanvasRenderer canvasProvider openCanvases provider providers capi models enableFileChangeTracking
  requestMcpApps enableGitHubTelemetryForwarding organizationCustomInstructions disabledSkills disabledMcpServers
  largeOutput`.split(/\s+/),
);

/** The reasons why a client may not set these parameters. All others reach files or programs. */
const WHY_DENIED = new Map([
  ["remoteSession", "would let GitHub control the session past the front door"],
  ["expAssignments", "turns on experiments that the front door does not know"],
  ["githubMcpToolConfig", "gives the session tools of GitHub's MCP server"],
]);

const APPROVING = ["managedSettings", "enableManagedSettings"];

/**
 * The fleet's settings for every session on a shared server. They keep the session away from the host and from other
 * sessions, so the client cannot change them. The SDK's `mode: "empty"` sets the same values (client.js,
 * configDefaultsForMode).
 */
const APART = {
  mcpOAuthTokenStorage: "in-memory",
  skipEmbeddingRetrieval: true,
  embeddingCacheStorage: "in-memory",
  enableOnDemandInstructionDiscovery: false,
  enableFileHooks: false,
  enableHostGitOperations: false,
  enableSessionStore: false,
  enableSkills: false,
  memory: { enabled: false },
  customAgentsLocalOnly: true,
};

/** In addition to `APART`: settings that the runtime accepts only through `session.options.update`. */
export const APART_OPTIONS: Params = {
  skipCustomInstructions: true,
  customAgentsLocalOnly: true,
  coauthorEnabled: false,
  manageScheduleEnabled: false,
  installedPlugins: [],
  includedBuiltinSkills: [],
};

/** Options that a client may change for a session on a server with other users. */
const HARMLESS_OPTIONS = new Set(
  `sessionId model reasoningEffort reasoningSummary verbosity clientName excludedTools enableStreaming askUserDisabled
  enableReasoningSummaries sessionLimits contextTier`.split(/\s+/),
);

const MODEL_OPTIONS = ["model", "reasoningEffort", "contextTier"];
/** Options that only the owner of a session may change. */
const OWNERS_OPTIONS = ["excludedTools", ...MODEL_OPTIONS];

/**
 * In addition to `HARMLESS_OPTIONS`: options that a client may change on the user's own server, even if the
 * configuration forbids the client to use files and programs there.
 */
const HARMLESS_OPTIONS_ON_OWN = new Set(
  `modelCapabilitiesOverrides lspClientName integrationId isExperimentalMode provider capi availableTools
  includedBuiltinAgents excludedBuiltinAgents toolFilterPrecedence allowAllMcpServerInstructions includedBuiltinSkills
  disabledSkills enableOnDemandInstructionDiscovery maxInlineBinaryBytes customAgentsLocalOnly suppressCustomAgentPrompt
  skipCustomInstructions disabledInstructionSources coauthorEnabled continueOnAutoMode runningInInteractiveMode
  agentContext eventsLogIncludesSubagents additionalContentExclusionPolicies manageScheduleEnabled sessionCapabilities
  skipEmbeddingRetrieval organizationCustomInstructions enableHostGitOperations enableSessionStore enableSkills
  envValueMode`.split(/\s+/),
);

/** Options that redirect the session's model requests, and the fleet's credentials with them. */
const REROUTING = ["provider", "copilotUrl", "capi"];

/**
 * The parameters that a server gets for `session.create` or `session.resume`.
 *
 * @param asked the client's own parameters
 * @throws FleetError `FLEET_METHOD_DENIED` for a parameter that is not allowed on that server
 */
export function sessionParams(
  method: "session.create" | "session.resume",
  asked: Params,
  record: SessionRecord,
  surroundings: Surroundings,
): Params {
  const { config, own, provider, gitHubToken } = surroundings;
  // A session in the cloud would not be on a server of this fleet, and the fleet could not choose its id.
  if (asked.cloud !== undefined) throw methodDenied(method, '"cloud" sessions are not on any server of this fleet');
  refuseReach(method, asked, surroundings);
  const params: Params = { ...asked, sessionId: record.id };
  // Hooks start programs, and an agent or a repository may have put them into the working folder.
  if (!reachesHost(surroundings)) params.enableFileHooks = false;
  if (method === "session.create") for (const name of RESUME_ONLY) delete params[name];
  if (!bringsCredentials(asked)) {
    // The runtime accepts a token or a provider for a session, but not both.
    if (provider !== null) params.provider = provider;
    else if (gitHubToken !== null) params.gitHubToken = gitHubToken;
  }
  // Set the model only for a new session. A resumed session continues with the model in its history, because the user
  // may have switched models.
  if (method === "session.create" && isAbsent(params.model)) {
    const model = record.model ?? config.session.model;
    if (model !== null) params.model = model;
  }
  if (isAbsent(params.infiniteSessions)) {
    params.infiniteSessions = record.persistence === "ephemeral" ? { enabled: false } : config.session.infinite;
  }
  // Replace the client's limits with those that `sessionLimitsOf` allows. A member gets none, because a member's limits
  // could stop the owner's turns.
  delete params.sessionLimits;
  // Ignore a member's model, because SDK clients may send one with each session.
  if (surroundings.member) for (const name of MODEL_OPTIONS) delete params[name];
  Object.assign(params, sessionLimitsOf(config, asked.sessionLimits, surroundings.member));
  const allowed = toolsOf(record, config, surroundings.isolation);
  if (own && allowed !== null) params.availableTools = allowedTools(asked, allowed);
  return own ? params : { ...params, ...apart(asked, record, surroundings) };
}

/**
 * Checks the options of a request that changes a session.
 *
 * @throws FleetError `FLEET_METHOD_DENIED` for an option that this user may not set on the session's server.
 */
export function checkOptions(
  method: string,
  asked: Params,
  { own, member, isolation, config, sandbox }: Pick<Surroundings, keyof Reach | "member" | "isolation">,
): void {
  const rerouting = REROUTING.find((name) => !isAbsent(asked[name]));
  if (rerouting !== undefined && (hasCredentials(config) || !own)) {
    throw methodDenied(method, `"${rerouting}" would take the fleet's credentials elsewhere`);
  }
  if (own && config.session.tools !== null && !isAbsent(asked.availableTools)) {
    throw methodDenied(method, '"availableTools" is set by the fleet (session.tools)');
  }
  if (reachesHost({ own, config, sandbox })) return;
  const owners = OWNERS_OPTIONS.find((name) => !isAbsent(asked[name]));
  if (member && owners !== undefined) throw methodDenied(method, `only the owner of a session sets "${owners}"`);
  // Refuse null, too, because it would remove the owner's limits.
  if (member && asked.sessionLimits !== undefined)
    throw methodDenied(method, 'only the owner of a session sets "sessionLimits"');
  for (const [name, value] of Object.entries(asked)) {
    if (HARMLESS_OPTIONS.has(name) || isOptionAllowed(name, value, { own, isolation })) continue;
    if (!own || !isAbsent(value)) throw settingDenied(method, name, own);
  }
}

function isOptionAllowed(name: string, value: unknown, { own, isolation }: Pick<Surroundings, "own" | "isolation">) {
  if (own && HARMLESS_OPTIONS_ON_OWN.has(name)) return true;
  // The SDK sends these values without being asked. Accept them on a shared server, where every session already has
  // them, and on the client's own server. On a server of another user, only that user may set them.
  return (own || isolation === "shared") && JSON.stringify(APART_OPTIONS[name]) === JSON.stringify(value);
}

function apart(asked: Params, record: SessionRecord, { config, isolation, member }: Surroundings): Params {
  const allowed = toolsOf(record, config, isolation) ?? [];
  // Ignore a member's hooks, because they could change the input and output of the owner's tools. Ignore a member's
  // choice of tools, because it would replace the owner's choice.
  const others = { systemMessage: undefined, hooks: false, excludedTools: undefined, excludedBuiltinAgents: undefined };
  // On another user's own server the session keeps the tools that its owner gave it.
  if (isolation === "per-user") {
    const availableTools = record.tools === undefined ? undefined : allowedTools({}, allowed);
    return { ...others, requestExitPlanMode: false, availableTools };
  }
  if (member) return { ...APART, ...others, availableTools: allowedTools({}, allowed) };
  // A hook can allow a tool without asking the client. That is harmless if the session has only the client's own tools.
  const hooks = asked.hooks === true && (config.session.approve === "all" || allowed.length === 0);
  return { ...APART, hooks, availableTools: allowedTools(asked, allowed) };
}

/**
 * The tools that the session gets: the allowed tools, and the client's own tools (`custom:`), which run in the client.
 * If the client sends `availableTools`, the session gets only those of them that are in this list.
 */
function allowedTools({ availableTools }: Params, allowed: readonly string[]): string[] {
  if (!Array.isArray(availableTools)) return [...allowed, "custom:*"];
  const names = availableTools.filter((name) => typeof name === "string");
  return names.filter((name) => name.startsWith("custom:") || allowed.includes(name));
}

function refuseReach(method: string, asked: Params, { own, isolation, config, sandbox, home }: Surroundings): void {
  const approving = APPROVING.find((name) => isSet(asked[name]));
  if (approving !== undefined && !decidesOnTools({ own, config })) throw approvalDenied(method, approving);
  if (reachesHost({ own, config, sandbox })) {
    if (isAbsent(asked.configDir) || isBelowHome(asked.configDir, home)) return;
    const allowed = `an absolute path in the home of the user's own server, ${quote(home)}`;
    throw methodDenied(method, `"configDir" (configDirectory in the SDK) must be ${allowed}`);
  }
  for (const [name, value] of Object.entries(asked)) {
    if (HARMLESS.has(name) || isAbsent(value) || (name === "remoteSession" && value === "off")) continue;
    // The Go SDK sends options of `session.options.update` here, too.
    if (isOptionAllowed(name, value, { own, isolation })) continue;
    if (!own || (!HARMLESS_ON_OWN.has(name) && isSet(value))) throw settingDenied(method, name, own);
  }
  // A custom agent can start MCP servers, and these are programs.
  if (/"mcp[-_]?servers"/i.test(JSON.stringify(asked.customAgents ?? null)))
    throw settingDenied(method, "customAgents.mcpServers", own);
  if (isSet((asked.largeOutput as Params | null | undefined)?.outputDir))
    throw settingDenied(method, "largeOutput.outputDir", own);
  refuseInnerProviders(method, asked);
}

function settingDenied(method: string, name: string, own: boolean): FleetError {
  if (own) return hostDenied(method, `${JSON.stringify(name)} ${WHY_DENIED.get(name) ?? "reaches files or programs"}`);
  return methodDenied(method, `${JSON.stringify(name)} cannot be set on a server that other users share`);
}

/** Whether a value sets something. Empty lists, empty objects and `false` set nothing. */
function isSet(value: unknown): boolean {
  if (typeof value === "object" && value !== null) return Object.keys(value).length > 0;
  return !isAbsent(value) && value !== false;
}

function isAbsent(value: unknown): boolean {
  return value === undefined || value === null;
}

/**
 * Whether a path that a client named lies in the server's home after all links are resolved. All servers run as the
 * same user of the operating system, so without a sandbox, only this check keeps a server out of other servers' homes.
 */
function isBelowHome(path: unknown, home: string): boolean {
  // Refuse "..": if a link comes before it, the runtime follows the link first and ends up in another folder.
  if (typeof path !== "string" || path.includes("\0") || !isAbsolute(path) || resolve(path) !== path) return false;
  const real = realPath(path);
  const realHome = realPath(home);
  return real !== null && realHome !== null && (real === realHome || real.startsWith(`${realHome}/`));
}

/** The path with its links resolved. The end of the path need not exist. Null if the path cannot be resolved. */
function realPath(path: string): string | null {
  try {
    return realpathSync(path);
  } catch {
    // Refuse a dangling link, because somebody could create its target, outside of the home, after this check.
    if (dirname(path) === path || isThere(path)) return null;
    const parent = realPath(dirname(path));
    return parent === null ? null : join(parent, basename(path));
  }
}

/** Whether something exists at this path. Also true if that cannot be determined. */
function isThere(path: string): boolean {
  try {
    return lstatSync(path, { throwIfNoEntry: false }) !== undefined;
  } catch {
    return true;
  }
}

/*
 * Settings of a whole server that a client may change before its first session.
 *
 * - When the server ends, the runtime forgets the settings, and the client cannot repeat them while sessions are
 *   loaded.
 *   So the client's connection ends with the server, as it does on a bare server.
 * - When the client that answers the server's model requests hangs up, the runtime keeps waiting for it: turns never
 *   end,
 *   and no other client can answer (measured with 1.0.85). So the server ends with the connection of this client.
 */

/**
 * For each method, the option of the SDK that sends it. A refusal names the option, because users do not know the
 * method.
 */
const OPTIONS: Record<string, string> = {
  "plugins.builtin.set": "builtinPluginDirectories",
  "llmInference.setProvider": "requestHandler",
  "llmInference.httpResponseStart": "requestHandler",
  "llmInference.httpResponseChunk": "requestHandler",
};

/** Whether the server has to end with the connection of the client that made this request. */
export function needsItsClient(method: string): boolean {
  return method === "llmInference.setProvider";
}

type Credentialed = Pick<ServerRecord, "token" | "user">;

export function checkSetup(
  method: string,
  link: { own: boolean; server: Credentialed & Pick<ServerRecord, "sandbox"> },
  config: Config,
): void {
  const { own, server } = link;
  const option = `the SDK's option "${OPTIONS[method]}"`;
  if (!own) throw methodDenied(method, `${option} affects the whole server, which other users share`);
  if (!reachesHost(reachOf(link, config))) throw hostDenied(method, `${option} reaches files or programs`);
  const sendsModelRequests = method !== "plugins.builtin.set";
  if (sendsModelRequests && isGivenCredentials(server, config)) {
    const harm = "would send all model requests of the server to this client, including the fleet's credentials";
    throw methodDenied(method, `${option} ${harm}`);
  }
}

export function refuseSetupElsewhere(method: string): never {
  const option = `the SDK's option "${OPTIONS[method]}"`;
  throw methodDenied(method, `${option} works only at the front door of the user's own host`);
}

/** Whether the fleet pays for model requests, with its own provider's key or with GitHub tokens. */
function hasCredentials({ provider, auth }: Config): boolean {
  return provider !== null || Object.values(auth).some((source) => source !== null);
}

/**
 * Whether the server's model requests contain credentials that are not the user's own. A GitHub token is the user's own
 * if the configuration names a token for each user.
 */
function isGivenCredentials({ token, user }: Credentialed, { provider, auth }: Config): boolean {
  if (provider !== null) return true;
  const configured = tokenSourceFromConfig(auth, user);
  if (token !== null && !isDeepStrictEqual(token, configured)) return true;
  const isForEachUser = JSON.stringify(auth.githubToken).includes("{user}");
  return configured !== null && !isForEachUser;
}

/** Parameters that name a model service, or credentials for one. */
const CREDENTIALS = ["provider", "providers", "gitHubToken", "gitHubTokenProviderRegistrationId"];

/** Whether the client names its own model service or token when it opens a session. */
export function bringsCredentials(asked: Params): boolean {
  return CREDENTIALS.some((name) => asked[name] !== undefined && asked[name] !== null);
}
