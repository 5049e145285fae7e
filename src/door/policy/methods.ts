import type { Action } from "../../identity/identity.js";
import { clientMismatch, runtimeMismatch } from "../../runtime/launch/versions.js";
import { APART_OPTIONS, checkOptions, sessionParams } from "./settings.js";

/**
 * Methods that no client may use. `why` completes the refusal: "METHOD is not allowed here: …". `docs/front-door.md`
 * lists the methods for users, and `test/door/methods.test.ts` fails when one is missing there.
 */
const REFUSED = [
  { why: "it would end the server, which only the fleet may do", names: "runtime.shutdown" },
  {
    why: `the SDK's option "sessionFs" would keep the state of sessions in this client, where the fleet could not find it after a restart and could not delete it`,
    names: "sessionFs.setProvider",
  },
  {
    why: "it would hand out the credentials of the model's provider",
    names: "session.provider.getEndpoint",
  },
  {
    why: "only the fleet may set and read credentials and accounts",
    names: `account.login account.logout account.getCurrentAuth account.getAllUsers accounts.acquireEntraToken
      session.gitHubAuth.setCredentials session.gitHubAuth.getCurrentAuthInfo session.gitHubAuth.getAllAuthAvailable
      session.gitHubAuth.refreshCopilotUser session.gitHubAuth.login session.gitHubAuth.switchToAuth
      session.gitHubAuth.logout session.gitHubAuth.logoutUser session.gitHubAuth.lastAuthErrors
      session.accounts.enumerate session.accounts.get session.accounts.set session.accounts.login.begin
      session.accounts.login.advance session.accounts.login.cancel`,
  },
  {
    why: "only session.create and session.resume open sessions, because the fleet has to record each session and check its owner",
    names: "sessions.open sessions.connect sessions.pollSpawnedSessions agentRegistry.spawn",
  },
  {
    why: "remote control would bypass the front door",
    names: "sessions.startRemoteControl sessions.getPersistedRemoteSteerable",
  },
  {
    why: "it reveals or collects files of the server's machine",
    names: "sessions.getEventFilePath sessions.getBoardEntryCount session.debug.collectLogs",
  },
  {
    why: "its effect would be lost without notice when the fleet opens the session again or restarts its server",
    names: `sessions.setAdditionalPlugins sessions.configureSessionExtensions sessions.registerExtensionToolsOnSession
      registerExtensionLaunchProvider managedSettings.clearCache
      session.mcp.reloadWithConfig session.mcp.configureGitHub session.mcp.registerExternalClient
      session.mcp.unregisterExternalClient session.canvas.provider.register session.canvas.provider.unregister
      session.model.applyStartupOverlay session.ui.registerDirectAutoModeSwitchHandler
      session.ui.unregisterDirectAutoModeSwitchHandler`,
  },
  {
    why: "it is meant for programs that embed the runtime",
    names: `session.factory.runFromTool session.factory.resumeFromTool session.factory.pauseAtCheckpoint
      session.workflow.runFromTool session.workflow.resumeFromTool session.workflow.pauseAtCheckpoint
      session.commands.finalizeInvocationEffect session.settings.snapshot session.settings.evaluatePredicate
      session.queue.snapshot session.queue.hasPending session.queue.beginDeferredIdleDrain
      session.queue.finishDeferredIdleDrain session.queue.deferSessionIdle session.queue.consumeSystemNotifications
      session.queue.enqueueResumePending session.queue.process`,
  },
  {
    why: "a scheduled prompt would begin a turn that no client sent",
    names: `session.schedule.hydrate session.schedule.hasSelfPaced session.schedule.add session.schedule.addCron
      session.schedule.addAt session.schedule.addSelfPaced session.schedule.rearmSelfPaced`,
  },
];

const REASONS = new Map(REFUSED.flatMap(({ why, names }) => names.split(/\s+/).map((name) => [name, why])));

const REFUSED_METHODS: readonly string[] = [...REASONS.keys()];

/** The reason why no client may use a method, as the end of a sentence. */
export function whyRefused(method: string): string {
  return REASONS.get(method) ?? "the front door does not pass it on";
}

/** How the front door handles a method. */
export type Handling = DoorHandling | UserHandling | SessionHandling;

interface Columns {
  /** `read`: the method changes nothing and begins no turn. Undefined means `use`. */
  readonly scope?: "read";
  /** Begins a turn or opens a session. The door starts only a few such requests in each round of the event loop. */
  readonly paced?: true;
  /**
   * Allowed only on the user's own server, because the method reaches beyond the conversation, into the server or its
   * home.
   */
  readonly own?: true;
  /**
   * Allowed only where `session.host` allows it, because the method reads or writes files, starts programs, or sends
   * credentials elsewhere.
   */
  readonly host?: true;
  /**
   * Allowed only if `session.approve` lets the client approve all tools, because the method may approve tools without
   * asking.
   */
  readonly approves?: true;
}

interface DoorHandling extends Columns {
  /** Needs neither a server nor a session. */
  readonly about: "nothing";
  /**
   * - `refuse`: no client may use the method: see `refused-methods.ts`. A valid `connect` does not get here, because
   *   `connection.ts` answers it.
   * - `foreground`: the front door answers like a headless server, which has no foreground session
   */
  readonly handler: "refuse" | "foreground";
}

export interface UserHandling extends Columns {
  /** Concerns the user, or the user's home server. */
  readonly about: "user";
  /**
   * - `pass`: passed on to the server
   * - `setUp`: passed on. Changes settings of the whole server, until the server ends: see `checkSetup`
   * - `create`, `list`, `last`: see `session-calls.ts`
   * - `deleteMany`, `prune`: delete several sessions, each like a `session.delete`: see `bulk-deletion.ts`
   */
  readonly handler: "pass" | "setUp" | "create" | "list" | "last" | "deleteMany" | "prune";
}

export interface SessionHandling extends Columns {
  /** The request names a session. The session's owner and members may use the method, on any server. */
  readonly about: "session";
  /**
   * - `send`: begins a turn. A session has one turn at a time: see `prompt-queue.ts`.
   * - `open`, `delete`, `detach`: see `session-calls.ts`
   * - `pass`: passed on to the session's server: see `passed-requests.ts`
   */
  readonly handler: "send" | "open" | "delete" | "detach" | "pass";
  /**
   * When the method is allowed in a collaborative session. Undefined means always.
   *
   * - `free`: not during somebody else's turn or lease
   * - `steer`: like `free`. The method ends or steers the turn, so the client's earlier prompts are sent first, even in
   *   a private session.
   * - `own turn`: only during the client's own turn, because the method queues prompts, and these begin a turn when no
   *   turn is running
   * - `never`: not at all, because the method makes the model work, or changes the history, outside a turn
   */
  readonly collaborative?: "free" | "steer" | "own turn" | "never";
  /** Cancels the client's waiting prompts. A user who has reached a limit may still use the method. */
  readonly cancels?: true;
  /** Sets options of the session. The door checks each of them: see `settings.ts`. */
  readonly checksOptions?: true;
  /**
   * Answers a permission request. The door turns an approval that the user may not give into a refusal: see `reach.ts`.
   */
  readonly permits?: true;
  /** The work that the door still has to do when the server has answered: see `passed-requests.ts`. */
  readonly finish?: "unload" | "keepTools" | "recordFork";
  /** The answer for a session that does not exist. Set only if a bare server does not answer with an error. */
  readonly missing?: (sessionId: string) => object;
}

/**
 * Every method that the SDKs 1.0.5 to 1.0.15-preview.4 send, because each client brings its own SDK. The front door
 * refuses all other methods. `test/door/methods.test.ts` fails when one of these SDKs, or the installed one, sends
 * another method.
 */
const TABLE: readonly (readonly [Handling, string])[] = [
  [{ about: "nothing", handler: "refuse" }, `connect ${REFUSED_METHODS.join(" ")}`],
  [{ about: "nothing", handler: "foreground" }, "session.getForeground session.setForeground"],
  [
    { about: "user", handler: "pass", scope: "read" },
    `ping status.get auth.getStatus models.list models.getBuiltInCatalog tools.list commands.list`,
  ],
  [{ about: "user", handler: "create", paced: true }, "session.create"],
  [{ about: "user", handler: "list", scope: "read" }, "session.list sessions.list"],
  [{ about: "user", handler: "last", scope: "read" }, "session.getLastId"],
  [
    { about: "user", handler: "pass", own: true, scope: "read" },
    `account.getQuota mcp.config.list mcp.installations.list mcp.installations.status sandbox.getHostSupport
    catalog.search plugins.list plugins.marketplaces.list skills.installations.list skills.installations.status
    user.settings.get managedSettings.read sessions.getClientMetadata sessions.findByTaskId sessions.findByPrefix
    sessions.getLastForContext sessions.getSizes sessions.checkInUse sessions.listNonEmptySessionIds
    sessions.getRemoteControlStatus`,
  ],
  [
    { about: "user", handler: "pass", own: true },
    // Remote control is off, unless a client that may start programs set `remoteSession` for its own session.
    `sessions.stopRemoteControl sessions.transferRemoteControl sessions.setRemoteControlSteering
    secrets.addFilterValues skills.config.setDisabledSkills skills.config.setSkillDisabled user.settings.reload
    sessions.enrichMetadata`,
  ],
  [
    { about: "user", handler: "pass", own: true, host: true },
    `hooks.discover mcp.config.add mcp.config.update mcp.config.remove mcp.config.enable mcp.config.disable
    mcp.config.reload mcp.discover mcp.planInstall mcp.prepareInstall mcp.applyInstall mcp.planUninstall
    mcp.applyUninstall mcp.installations.recover mcp.installations.cancel extensions.discover extensions.enable
    extensions.disable catalog.select plugins.install plugins.uninstall plugins.update plugins.updateAll
    plugins.enable plugins.disable plugins.marketplaces.add plugins.marketplaces.remove plugins.marketplaces.browse
    plugins.marketplaces.refresh skills.planInstall skills.applyInstall skills.planUninstall skills.applyUninstall
    skills.installations.recover skills.installations.cancel skills.installations.setEnabled skills.discover
    skills.getDiscoveryPaths agents.discover agents.getDiscoveryPaths instructions.discover
    instructions.getDiscoveryPaths`,
  ],
  [{ about: "user", handler: "pass", own: true, host: true, approves: true }, "user.settings.set"],
  [
    { about: "user", handler: "setUp" },
    `plugins.builtin.set llmInference.setProvider llmInference.httpResponseStart llmInference.httpResponseChunk`,
  ],
  [{ about: "user", handler: "deleteMany", own: true }, "sessions.bulkDelete"],
  [{ about: "user", handler: "prune", own: true }, "sessions.pruneOld"],
  // If a client has only the scope `read`, the door removes all settings from this request: see `viewer.ts`.
  [{ about: "session", handler: "open", paced: true, scope: "read" }, "session.resume"],
  [{ about: "session", handler: "send", paced: true }, "session.send session.sendMessages"],
  [
    {
      about: "session",
      handler: "delete",
      missing: (sessionId) => ({ success: false, error: `Session file not found for ${sessionId}` }),
    },
    "session.delete",
  ],
  [{ about: "session", handler: "delete" }, "sessions.delete"],
  // SDKs up to 1.0.11, and SDKs for other languages from that time, send `session.destroy` to leave a session.
  [
    { about: "session", handler: "detach", scope: "read", missing: () => ({ success: true }) },
    "session.detach session.destroy",
  ],
  // The runtime keeps its lock while other clients have the session open.
  [{ about: "session", handler: "detach", missing: () => ({}) }, "sessions.releaseLock"],
  [
    { about: "session", handler: "pass", scope: "read", missing: () => ({}) },
    "session.getMetadata sessions.getMetadata",
  ],
  [{ about: "session", handler: "pass", checksOptions: true }, "session.options.update"],
  [
    { about: "session", handler: "pass", scope: "read" },
    `session.getMessages session.usage.getMetrics session.gitHubAuth.getStatus session.telemetry.getEngagementId
    session.visibility.get session.canvas.list session.canvas.listOpen session.model.getCurrent
    session.model.list session.mode.get session.name.get session.plan.read session.plan.readSqlTodos
    session.plan.readSqlTodosWithDependencies session.autopilotObjective.getState
    session.completions.getTriggerCharacters session.agent.list session.agent.getCurrent session.tasks.list
    session.tasks.getProgress session.tasks.getCurrentPromotable session.skills.list session.skills.getInvoked
    session.mcp.list session.mcp.listTools session.mcp.isServerRunning session.plugins.list
    session.extensions.list session.tools.getBuiltinDescriptors session.tools.getCurrentMetadata
    session.commands.list session.permissions.pendingRequests session.permissions.getMode
    session.permissions.getAllowAll session.metadata.snapshot session.metadata.getClientMetadata
    session.metadata.isProcessing session.metadata.activity session.metadata.contextInfo
    session.metadata.getContextAttribution session.metadata.getContextHeaviestMessages
    session.history.listRewindPoints session.queue.pendingItems session.schedule.list session.eventLog.read
    session.eventLog.tail sessions.readPersistedEvents`,
  ],
  [
    { about: "session", handler: "pass" },
    `session.log session.limitPrediction.predict session.model.switchTo session.model.switchAutoTier
    session.model.setReasoningEffort session.mode.set session.name.set session.name.setAuto session.plan.update
    session.plan.delete session.completions.request session.agent.setPrompt session.agent.select
    session.agent.deselect session.tasks.refresh session.tasks.waitForPending session.tasks.promoteToBackground
    session.tasks.promoteCurrentToBackground session.tasks.cancel session.tasks.remove session.tasks.register
    session.tasks.update session.mcp.moveLoadingToBackground session.mcp.cancelSamplingExecution
    session.mcp.oauth.handlePendingRequest session.mcp.oauth.respond
    session.mcp.headers.handlePendingHeadersRefreshRequest session.tools.taskCompleteEventData
    session.tools.handlePendingToolCall session.tools.initializeAndValidate
    session.commands.handlePendingCommand session.commands.respondToQueuedCommand session.ui.elicitation
    session.ui.handlePendingElicitation session.ui.handlePendingUserInput session.ui.handlePendingSampling
    session.ui.handlePendingAutoModeSwitch session.ui.handlePendingSessionLimitsExhausted
    session.permissions.resetSessionApprovals session.permissions.notifyPromptShown
    session.metadata.updateClientMetadata session.metadata.recomputeContextTokens
    session.history.cancelBackgroundCompaction session.history.abortManualCompaction
    session.eventLog.registerInterest session.eventLog.releaseInterest sessions.save`,
  ],
  [{ about: "session", handler: "pass", permits: true }, "session.permissions.handlePendingPermissionRequest"],
  [{ about: "session", handler: "pass", finish: "keepTools" }, "session.tools.set"],
  [{ about: "session", handler: "pass", collaborative: "steer", cancels: true }, "session.abort"],
  [{ about: "session", handler: "pass", collaborative: "steer", finish: "unload" }, "session.shutdown"],
  [
    { about: "session", handler: "pass", collaborative: "steer" },
    `session.interruptMainTurn session.cancelAllBackgroundAgents session.suspend sessions.close`,
  ],
  [
    { about: "session", handler: "pass", collaborative: "own turn" },
    `session.queue.moveItem session.queue.insertAt session.queue.removeAt session.queue.updateText
    session.queue.duplicateAt session.queue.setDrainPaused session.queue.sendNow session.queue.removeMostRecent
    session.queue.clear session.queue.appendSteering session.queue.withdrawMessage`,
  ],
  [
    { about: "session", handler: "pass", collaborative: "never" },
    `session.fleet.start session.tasks.startAgent session.tasks.sendMessage session.ui.ephemeralQuery
    session.history.compact session.history.truncate session.history.summarizeForHandoff session.history.clearContext`,
  ],
  [
    { about: "session", handler: "pass", collaborative: "free", own: true },
    `session.sandbox.getEnforcementStatus session.canvas.open session.canvas.close session.canvas.action.invoke
    session.model.setAllowedModels session.instructions.getSources session.agent.reload session.skills.enable
    session.skills.disable session.skills.reload session.skills.ensureLoaded session.provider.add
    session.tools.updateSubagentSettings session.commands.execute session.ui.handlePendingExitPlanMode
    session.permissions.paths.list session.history.previewRewind session.history.rewind session.schedule.stop
    session.sendSystemNotification session.instructions.reload session.customizations.reload
    session.managedSettings.get`,
  ],
  [{ about: "session", handler: "pass", collaborative: "free", own: true, finish: "recordFork" }, "sessions.fork"],
  [
    { about: "session", handler: "pass", collaborative: "free", own: true, approves: true },
    `session.permissions.setRequired session.permissions.configure session.permissions.setApproveAll
    session.permissions.setAllowAll session.permissions.setMode session.permissions.modifyRules
    session.permissions.locations.addToolApproval session.permissions.urls.setUnrestrictedMode`,
  ],
  [
    { about: "session", handler: "pass", collaborative: "free", own: true, host: true },
    `session.factory.run session.factory.resume session.factory.getRun session.factory.listRuns
    session.factory.getRunDetail session.factory.getRunProgress session.factory.cancel session.factory.pause
    session.factory.log session.factory.agent session.factory.journal.get session.factory.journal.put
    session.workflow.run session.workflow.resume session.workflow.getRun session.workflow.listRuns
    session.workflow.getRunDetail session.workflow.getRunProgress session.workflow.cancel session.workflow.pause
    session.workflow.log session.workflow.agent session.workflow.journal.get session.workflow.journal.put
    session.workspaces.getWorkspace session.workspaces.updateMetadata session.workspaces.ensure
    session.workspaces.listFiles session.workspaces.readFile session.workspaces.createFile
    session.workspaces.statFile session.workspaces.createDirectory session.workspaces.removePath
    session.workspaces.renamePath session.workspaces.listCheckpoints session.workspaces.readCheckpoint
    session.workspaces.addSummary session.workspaces.truncateSummaries session.workspaces.readAutopilotObjective
    session.workspaces.writeAutopilotObjective session.workspaces.deleteAutopilotObjective
    session.workspaces.autopilotObjectiveExists session.workspaces.saveLargePaste session.workspaces.diff
    session.mcp.enable session.mcp.disable session.mcp.reload session.mcp.executeSampling session.mcp.setEnvValueMode
    session.mcp.removeGitHub session.mcp.startServer session.mcp.restartServer session.mcp.stopServer
    session.mcp.oauth.authenticationStateChanged session.mcp.oauth.login session.mcp.oauth.probe
    session.mcp.oauth.prepareLogin session.mcp.oauth.cancelLogin session.mcp.apps.readResource
    session.mcp.apps.listTools session.mcp.apps.callTool session.mcp.apps.setHostContext
    session.mcp.apps.getHostContext session.mcp.apps.diagnose session.mcp.resources.read session.mcp.resources.list
    session.mcp.resources.listTemplates session.plugins.reload session.plugins.install session.plugins.uninstall
    session.plugins.update session.plugins.enable session.plugins.disable session.plugins.marketplaces.list
    session.plugins.marketplaces.add session.plugins.marketplaces.remove session.plugins.marketplaces.browse
    session.plugins.marketplaces.refresh session.provider.sync session.lsp.initialize
    session.connectors.getCapabilities session.connectors.getStatus session.connectors.list
    session.connectors.connect session.connectors.continueConnection session.connectors.disconnect
    session.connectors.reconcile session.connectors.reconcileForStartup session.connectors.reconnect
    session.connectors.refresh session.connectors.withdrawProjection session.diagnostics.configure
    session.diagnostics.read session.extensions.enable session.extensions.disable session.extensions.reload
    session.extensions.sendAttachmentsToMessage session.tools.execute session.telemetry.setFeatureOverrides
    session.permissions.paths.isPathWithinAllowedDirectories session.permissions.paths.isPathWithinWorkspace
    session.permissions.locations.resolve session.permissions.folderTrust.isTrusted
    session.metadata.recordContextChange session.metadata.setWorkingDirectory session.contentExclusion.checkPaths
    session.shell.exec session.shell.kill session.shell.executeUserRequested session.shell.cancelUserRequested
    session.remote.enable session.remote.disable session.remote.notifySteerableChanged session.visibility.set
    sessions.reloadPluginHooks sessions.loadDeferredRepoHooks`,
  ],
  [
    { about: "session", handler: "pass", collaborative: "free", own: true, host: true, approves: true },
    `session.commands.invoke session.commands.enqueue session.sandbox.disableForSession session.permissions.paths.add
    session.permissions.paths.updatePrimary session.permissions.locations.apply
    session.permissions.folderTrust.addTrusted`,
  ],
];

const METHODS = new Map(TABLE.flatMap(([handling, names]) => names.split(/\s+/).map((name) => [name, handling])));

const UNKNOWN: Handling = { about: "nothing", handler: "refuse" };

/** The action that the policy checks for a method: `readAll` or `useAll` if the method reaches beyond one session. */
export function actionOf(handling: Handling): Action {
  if (handling.about === "nothing") return "read";
  const { about, handler, own, scope = "use" } = handling;
  // `list` and `last` reach only the client's sessions, because the door filters their answers.
  const reachesAll =
    about === "user"
      ? own === true || !["pass", "list", "last"].includes(handler)
      : handling.host === true || handling.finish === "recordFork" || handler === "delete";
  return reachesAll ? `${scope}All` : scope;
}

export function handlingOf(method: string): Handling {
  return METHODS.get(method) ?? UNKNOWN;
}

export function isKnownMethod(method: string): boolean {
  return METHODS.has(method);
}

export function knownMethods(): string[] {
  return [...METHODS.keys()];
}

/** One version of the protocol between SDK and server, with its tables of methods and settings. */
export interface Protocol {
  readonly version: number;
  readonly handlingOf: typeof handlingOf;
  readonly actionOf: typeof actionOf;
  readonly isKnownMethod: typeof isKnownMethod;
  readonly whyRefused: typeof whyRefused;
  readonly sessionParams: typeof sessionParams;
  /**
   * On a shared server, the door sends a `session.options.update` with these parameters after it has opened a session.
   */
  readonly apartOptions: typeof APART_OPTIONS;
  readonly checkOptions: typeof checkOptions;
}

const tables = {
  handlingOf,
  actionOf,
  isKnownMethod,
  whyRefused,
  sessionParams,
  apartOptions: APART_OPTIONS,
  checkOptions,
};

/** The protocols by version. The versions are those of `SUPPORTED_VERSIONS` in `runtime/launch/versions.ts`. */
export const PROTOCOLS: ReadonlyMap<number, Protocol> = new Map([[3, { version: 3, ...tables }]]);

/** @param named the `protocolVersion` in the client's `connect`. SDK 1.x names none, and speaks version 3. */
export function clientProtocol(named: unknown, protocols = PROTOCOLS): Protocol {
  const version = typeof named === "number" ? named : 3;
  const protocol = protocols.get(version);
  if (protocol === undefined) throw clientMismatch(version, [...protocols.keys()]);
  return protocol;
}

/** @param answered the `protocolVersion` in the server's answer to `connect` */
export function serverProtocol(where: string, answered: unknown): Protocol {
  const protocol = typeof answered === "number" ? PROTOCOLS.get(answered) : undefined;
  if (protocol === undefined) throw runtimeMismatch(where, answered ?? null);
  return protocol;
}

/** Refuses a client and a server of different versions, because the front door does not translate requests. */
export function checkSameProtocol(client: Protocol, server: Protocol): void {
  if (client.version !== server.version) throw clientMismatch(client.version, [server.version]);
}
