import type { CopilotSession, ProviderConfig, SessionConfig } from "@github/copilot-sdk";
import { abortable, isTimeout } from "../../base/clock.js";
import { FleetError } from "../../base/errors.js";
import type { SandboxReport } from "../../base/sandbox.js";
import type { Isolation, ServerRecord } from "../../base/server.js";
import { type SessionRecord, toolsOf } from "../../base/session.js";
import { creditsInRefusal, keepLimited, sessionLimitsOf } from "../../base/usage.js";
import { creditsUsedUp } from "../../base/user-limits.js";
import type { Config } from "../../config/schema.js";
import { tokenSourceFromConfig } from "../../providers/github-token.js";
import type { ModelUse } from "../../providers/provider.js";
import type { ConnectedClient } from "../../runtime/client/connect.js";
import { isLoadedBy, readSessionFolder } from "../../runtime/history/session-state.js";
import { reachesHost } from "../../servers/admission.js";
import { sessionMoved } from "../../servers/directory.js";
import { hasProvider, noteOpened } from "../memory/open-notes.js";
import { explained, modelUnconfigured, type SessionsContext, sessionLost } from "../problems.js";
import type { Asker } from "../requests.js";
import { permissions } from "./open-session.js";
import { sessionToken, tokenRefused } from "./session-token.js";
import type { SessionUse } from "./use-session.js";

type LoadContext = Pick<SessionsContext, "config" | "env" | "directory"> & {
  provider: Pick<SessionsContext["provider"], "of">;
  pool: Pick<SessionsContext["pool"], "tokenSourceOf">;
};

/** The credentials that the fleet adds to a session, so that its model can be used. */
interface ModelAccess {
  provider: ProviderConfig | null;
  /** The GitHub token of the session's owner; null if the server has it for all of its sessions. */
  gitHubToken: string | null;
}

export interface Loading {
  /**
   * Whether to create or to resume the session. A session that never had a turn is created, because the runtime can
   * resume it only while a client has it open.
   */
  how: "create" | "resume";
  record: SessionRecord;
  server: ServerRecord;
  access: ModelAccess;
}

/** Opens a session on its server, either with the SDK's client or over a connection of the front door. */
export interface Transport<Opened> {
  /** Whether a client chose the session's folder. Only the server then knows where the folder is. */
  readonly hasOwnFolder?: boolean;
  /** Makes the server load the session, and attaches to it. */
  load(loading: Loading, signal: AbortSignal): Promise<Opened>;
}

/**
 * Makes a server load a session, and attaches to it. This is the only place that decides whether to create or to resume
 * the session. The caller has set the use marker, made room, and read the record under the marker.
 *
 * @param isNew whether the session was recorded a moment ago, so that no disk can have its state
 * @param isAlone whether no other use of the session has begun. Otherwise, a turn may be running in it.
 * @throws FleetError `FLEET_SESSION_MOVED`, `FLEET_SESSION_LOST`, `FLEET_STORAGE_UNUSABLE`, `FLEET_MODEL_UNCONFIGURED`;
 * the errors of the transport.
 */
export async function load<T>(
  context: LoadContext,
  { record, server, model }: Pick<SessionUse, "record" | "server"> & { model: Pick<ModelUse, "isGiven"> },
  transport: Transport<T>,
  { isNew, isAlone, signal }: { isNew: boolean; isAlone: boolean; signal: AbortSignal },
): Promise<T> {
  const { directory } = context;
  // Check the host again, because the wait for other turns may have outlasted the term of this host.
  if (record.serverId !== server.id || !(await directory.has(record))) throw sessionMoved(record, null);
  await directory.assertStorage();
  const how = isNew ? "create" : howToLoad(record, server, transport);
  const access = await modelAccess(context, record, server, signal);
  // If a turn is running, do not change its provider: its model requests must not go through this process, which may
  // end before that turn.
  const keepsProvider = !isAlone && isLoaded(record, server);
  const loadBy = async (how: Loading["how"]) => {
    noteOpened(server, record.id);
    const provider = how === "resume" && keepsProvider ? null : access.provider;
    try {
      const opened = await transport.load({ how, record, server, access: { ...access, provider } }, signal);
      model.isGiven = true;
      return opened;
    } finally {
      // Replace the stamp of a process that gave the server its provider at the same time.
      noteOpened(server, record.id);
    }
  };
  const refusal = (error: unknown) => {
    if (access.gitHubToken !== null && isTokenRefusal(error)) return tokenRefused(context, { record, server }, error);
    const used = creditsInRefusal(error);
    if (used === null) return error;
    return creditsUsedUp(record.id, { used, max: context.config.session.maxCredits, cause: error });
  };
  try {
    return await loadBy(how);
  } catch (error) {
    // Create the session if the server turns out not to have it. `howToLoad` cannot see that if a client chose the
    // session's folder, or if the session's last client has left since.
    const isUnsaved = transport.hasOwnFolder === true || !hasHistory(record, server);
    if (how === "create" || !isUnloaded(error) || record.turns > 0 || !isUnsaved) throw refusal(error);
    return await loadBy("create").catch((again: unknown) => {
      throw refusal(again);
    });
  }
}

/**
 * The credentials that the server still needs before the prompt of a turn; none if it already got them in this use. The
 * provider is null if the server still has it from an earlier use by this process.
 */
export async function missingAccess(
  context: LoadContext & Pick<SessionsContext, "provider">,
  use: Pick<SessionUse, "record" | "server" | "model">,
  signal: AbortSignal,
): Promise<ModelAccess> {
  if (use.model.isGiven) return { provider: null, gitHubToken: null };
  const access = await modelAccess(context, use.record, use.server, signal);
  const isThere = access.provider !== null && hasProvider(context, use, access.provider);
  return isThere ? { ...access, provider: null } : access;
}

/** Waits until a session is open, and then applies the settings for which the SDK has no option. */
export async function withSettings(
  opening: Promise<CopilotSession>,
  config: Pick<Config, "provider" | "session">,
  member: boolean,
): Promise<CopilotSession> {
  const session = await opening;
  if (member) await keepLimited(config, session.rpc);
  return session;
}

/**
 * Waits for the server's answer to a request of the SDK. Only `signal` limits this wait.
 *
 * @throws FleetError `FLEET_SERVER_LOST` when the server ends first, `FLEET_SERVER_UNREACHABLE` when the deadline of
 * `signal` passes; the errors of {@link explained}; the signal's own reason when the caller gives up.
 */
export async function answer<T>(request: Promise<T>, { closed }: ConnectedClient, signal: AbortSignal): Promise<T> {
  const lost = closed.then((): never => {
    throw new FleetError("FLEET_SERVER_LOST", "The server ended before it answered.", {
      suggestions: ["Run the command again. It restarts the server."],
    });
  });
  try {
    return await abortable(Promise.race([request, lost]), signal);
  } catch (cause) {
    if (!signal.aborted || cause !== signal.reason) return explained(cause);
    if (!isTimeout(cause)) throw cause;
    throw new FleetError("FLEET_SERVER_UNREACHABLE", "The server did not answer in time.", {
      cause,
      suggestions: ["copilotfleet ps", "copilotfleet restart --user USER --force"],
    });
  }
}

/** Whether the error is the runtime's "session not found": the session is not in its memory, or is missing on disk. */
export function isUnloaded(error: unknown): boolean {
  return error instanceof Error && /session not found/i.test(error.message);
}

/** Whether the runtime refused to open a session because GitHub did not accept its token (as of 1.0.85 and 1.0.102). */
function isTokenRefusal(error: unknown): boolean {
  return (
    error instanceof Error && /authentication failed: Failed to fetch Copilot user info: 40[134]/.test(error.message)
  );
}

function isLoaded({ id }: SessionRecord, { home, process }: ServerRecord): boolean {
  return process !== null && isLoadedBy(home, id, process);
}

function hasHistory({ id }: SessionRecord, { home }: ServerRecord): boolean {
  return readSessionFolder(home, id)?.hasHistory === true;
}

function howToLoad(record: SessionRecord, server: ServerRecord, { hasOwnFolder }: Transport<unknown>): Loading["how"] {
  if (hasOwnFolder === true) return "resume";
  const folder = readSessionFolder(server.home, record.id);
  if (folder?.hasHistory === true || isLoaded(record, server)) return "resume";
  if (record.turns > 0) throw sessionLost(record);
  return "create";
}

/** Variables from which the runtime itself might find a model or an account, if `runtime.env` passes them on. */
const OWN_ACCESS = /^(COPILOT|GH|GITHUB)_/;

/**
 * Throws if no model can answer, because neither the configuration nor a server of this user has a provider or a token.
 * Does not throw if the configuration gives the runtime flags or variables that might provide a model.
 *
 * @throws FleetError `FLEET_MODEL_UNCONFIGURED`
 */
export async function assertModel(
  { config, store }: Pick<SessionsContext, "config" | "store">,
  user: string,
): Promise<void> {
  const { auth, runtime } = config;
  if (config.provider !== null || tokenSourceFromConfig(auth, user) !== null) return;
  if (runtime.args.length > 0 || runtime.env.some((name) => OWN_ACCESS.test(name))) return;
  const { servers } = await store.registry.read();
  const hasToken = (server: ServerRecord) => server.token !== null && (server.user ?? user) === user;
  if (!Object.values(servers).some(hasToken)) throw modelUnconfigured();
}

async function modelAccess(
  context: LoadContext,
  record: SessionRecord,
  server: ServerRecord,
  signal: AbortSignal,
): Promise<ModelAccess> {
  const provider = await context.provider.of(record.id, server);
  // The runtime accepts a token or a provider for a session, but not both.
  const gitHubToken = provider === null ? await sessionToken(context, { record, server }, signal) : null;
  return { provider, gitHubToken };
}

/** The settings that a caller of the library may set on a session. The fleet's configuration fills in the others. */
export type SessionOptions = Omit<SessionConfig, "sessionId">;

interface Surroundings {
  config: Config;
  isolation: Isolation;
  /** Whether the server is the user's own. */
  own: boolean;
  /** The server's sandbox; undefined if it has none. */
  sandbox: SandboxReport | undefined;
  /**
   * Whether this client must refuse a request for a tool's permission, or leave it to another client. The runtime sends
   * each of these requests to all clients of the session, even in other clients' turns.
   */
  decides: () => boolean;
  /** Whether the session belongs to another user. */
  member: boolean;
  /** Puts the agent's requests to the user. Null if nobody answers them. */
  asker: Asker | null;
  provider: ProviderConfig | null;
  /** The GitHub token of the session's owner; null if the server has it for all of its sessions. */
  gitHubToken: string | null;
}

/**
 * The settings of a session for the SDK. `resumeSession` gets all of them again, because the runtime never stores a
 * provider and its key.
 */
export function sessionConfig(
  { config, isolation, own, sandbox, decides, member, asker, provider, gitHubToken }: Surroundings,
  record: SessionRecord,
  given: SessionOptions = {},
): SessionOptions {
  const tools = toolsOf(record, config, isolation);
  const model = record.model ?? config.session.model;
  const overrides = { ...asker?.handlersFor(config), ...given };
  const decide = permissions(config, own, overrides, decides);
  const { sessionLimits, ...others } = overrides;
  return {
    ...(model === null ? {} : { model }),
    streaming: true,
    // Hooks start programs, and an agent or a repository may have put them into the working folder.
    ...(reachesHost({ own, config, sandbox }) ? {} : { enableFileHooks: false }),
    infiniteSessions: record.persistence === "ephemeral" ? { enabled: false } : config.session.infinite,
    ...(tools === null ? {} : { availableTools: tools }),
    ...(provider === null ? {} : { provider }),
    ...(gitHubToken === null ? {} : { gitHubToken }),
    ...others,
    ...sessionLimitsOf(config, sessionLimits, member),
    onPermissionRequest: asker?.guard(decide) ?? decide,
  };
}
