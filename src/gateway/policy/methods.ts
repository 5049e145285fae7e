import { REFUSED_METHODS } from "./refused-methods.js";

/**
 * How the front door handles a method of the protocol. The table below lists every method that the SDKs 1.0.5 to
 * 1.0.15-preview.4 send, because each client brings its own SDK. `test/gateway/methods.test.ts` fails when one of these
 * versions, or the installed one, sends a method that is not listed. The front door refuses such a method.
 */
export type Scope =
  /** Each has its own rules: see `connection.ts`, `requests.ts`, `answers.ts` and `opener.ts`. */
  | "connect"
  | "create"
  | "resume"
  | "delete"
  | "detach"
  | "list"
  | "last"
  | "metadata"
  | "options"
  /** Begins a turn. A session has one turn at a time. */
  | "send"
  /** Acts within one session. For the owner and the members, on any server. */
  | "session"
  /** Like `session`, but ends or steers the turn. In a collaborative session, not during somebody else's turn or lease. */
  | "steer"
  /**
   * Like `session`, but queues prompts, which begin a turn when none is running. In a collaborative session, only during the
   * client's own turn.
   */
  | "queue"
  /** Like `session`, but makes the model work, or changes the history, outside a turn. Not in collaborative sessions. */
  | "work"
  /** Names a session, but reaches past the conversation, into its server's home. Only on the user's own server. */
  | "home"
  /** Names a session, and approves tools in advance. Only on the user's own server, and as `session.approve` allows. */
  | "approve"
  /**
   * Names a session, but reads or writes files, starts programs, or sends credentials elsewhere. Only on the user's own
   * server, and only if `session.host` is "owner".
   */
  | "host"
  /** Answered by the front door itself, in the same way as a headless server, which has no foreground session. */
  | "foreground"
  /** Does not concern a session, and has the same answer for everybody. */
  | "free"
  /** Concerns the whole server. Only on the user's own server. */
  | "own"
  /** Like `own`, but reaches files and programs, so only if `session.host` is "owner". */
  | "own-host"
  /** Like `own-host`, and sets up the server for as long as it runs: see `server-setup.ts`. */
  | "setup"
  /** Like `own`, and deletes sessions, each by the rules of `delete`. */
  | "bulk"
  /** Always refused: see `refused-methods.ts`. */
  | "never";

const TABLE: Record<Scope, string> = {
  connect: "connect",
  create: "session.create",
  resume: "session.resume",
  delete: "session.delete sessions.delete",
  // SDKs up to 1.0.11, and the SDKs for other languages from that time, leave a session by `session.destroy`.
  detach: "session.detach session.destroy",
  list: "session.list sessions.list",
  last: "session.getLastId",
  metadata: "session.getMetadata sessions.getMetadata",
  options: "session.options.update",
  send: "session.send session.sendMessages",
  session: `
    session.getMessages session.log session.usage.getMetrics session.limitPrediction.predict
    session.gitHubAuth.getStatus session.telemetry.getEngagementId session.visibility.get
    session.canvas.list session.canvas.listOpen
    session.model.getCurrent session.model.switchTo session.model.switchAutoTier session.model.setReasoningEffort
    session.model.list session.mode.get session.mode.set session.name.get session.name.set session.name.setAuto
    session.plan.read session.plan.update session.plan.delete
    session.plan.readSqlTodos session.plan.readSqlTodosWithDependencies
    session.autopilotObjective.getState session.completions.getTriggerCharacters session.completions.request
    session.agent.list session.agent.setPrompt session.agent.getCurrent session.agent.select session.agent.deselect
    session.tasks.list session.tasks.refresh session.tasks.waitForPending session.tasks.getProgress
    session.tasks.getCurrentPromotable session.tasks.promoteToBackground session.tasks.promoteCurrentToBackground
    session.tasks.cancel session.tasks.remove session.tasks.register session.tasks.update
    session.skills.list session.skills.getInvoked
    session.mcp.list session.mcp.listTools session.mcp.isServerRunning session.mcp.moveLoadingToBackground
    session.mcp.cancelSamplingExecution session.mcp.oauth.handlePendingRequest session.mcp.oauth.respond
    session.mcp.headers.handlePendingHeadersRefreshRequest
    session.plugins.list session.extensions.list
    session.tools.getBuiltinDescriptors session.tools.taskCompleteEventData session.tools.handlePendingToolCall
    session.tools.initializeAndValidate session.tools.getCurrentMetadata session.tools.set
    session.commands.list session.commands.handlePendingCommand session.commands.respondToQueuedCommand
    session.ui.elicitation session.ui.handlePendingElicitation session.ui.handlePendingUserInput
    session.ui.handlePendingSampling session.ui.handlePendingAutoModeSwitch
    session.ui.handlePendingSessionLimitsExhausted
    session.permissions.handlePendingPermissionRequest session.permissions.pendingRequests
    session.permissions.getMode session.permissions.getAllowAll session.permissions.resetSessionApprovals
    session.permissions.notifyPromptShown
    session.metadata.snapshot session.metadata.getClientMetadata session.metadata.updateClientMetadata
    session.metadata.isProcessing session.metadata.activity session.metadata.contextInfo
    session.metadata.getContextAttribution session.metadata.getContextHeaviestMessages
    session.metadata.recomputeContextTokens
    session.history.listRewindPoints session.history.cancelBackgroundCompaction session.history.abortManualCompaction
    session.queue.pendingItems session.schedule.list
    session.eventLog.read session.eventLog.tail session.eventLog.registerInterest session.eventLog.releaseInterest
    sessions.save sessions.readPersistedEvents`,
  steer: `
    session.abort session.interruptMainTurn session.cancelAllBackgroundAgents session.suspend session.shutdown
    sessions.close`,
  queue: `
    session.queue.moveItem session.queue.insertAt session.queue.removeAt session.queue.updateText
    session.queue.duplicateAt session.queue.setDrainPaused session.queue.sendNow session.queue.removeMostRecent
    session.queue.clear session.queue.appendSteering session.queue.withdrawMessage`,
  work: `
    session.fleet.start session.tasks.startAgent session.tasks.sendMessage session.ui.ephemeralQuery
    session.history.compact session.history.truncate session.history.summarizeForHandoff session.history.clearContext`,
  home: `
    session.sandbox.getEnforcementStatus session.canvas.open session.canvas.close session.canvas.action.invoke
    session.model.setAllowedModels session.instructions.getSources session.agent.reload session.skills.enable
    session.skills.disable session.skills.reload session.skills.ensureLoaded session.provider.add
    session.tools.updateSubagentSettings session.commands.execute session.ui.handlePendingExitPlanMode
    session.permissions.paths.list session.history.previewRewind session.history.rewind session.schedule.stop
    session.sendSystemNotification sessions.fork session.instructions.reload session.customizations.reload
    session.managedSettings.get`,
  approve: `
    session.permissions.setRequired session.permissions.configure session.permissions.setApproveAll
    session.permissions.setAllowAll session.permissions.setMode session.permissions.modifyRules
    session.permissions.locations.addToolApproval session.permissions.urls.setUnrestrictedMode`,
  host: `
    session.sandbox.disableForSession
    session.factory.run session.factory.resume session.factory.getRun session.factory.listRuns
    session.factory.getRunDetail session.factory.getRunProgress session.factory.cancel session.factory.pause
    session.factory.log session.factory.agent session.factory.journal.get session.factory.journal.put
    session.workflow.run session.workflow.resume session.workflow.getRun session.workflow.listRuns
    session.workflow.getRunDetail session.workflow.getRunProgress session.workflow.cancel session.workflow.pause
    session.workflow.log session.workflow.agent session.workflow.journal.get session.workflow.journal.put
    session.workspaces.getWorkspace session.workspaces.updateMetadata session.workspaces.ensure
    session.workspaces.listFiles session.workspaces.readFile session.workspaces.createFile session.workspaces.statFile
    session.workspaces.createDirectory session.workspaces.removePath session.workspaces.renamePath
    session.workspaces.listCheckpoints session.workspaces.readCheckpoint session.workspaces.addSummary
    session.workspaces.truncateSummaries session.workspaces.readAutopilotObjective
    session.workspaces.writeAutopilotObjective session.workspaces.deleteAutopilotObjective
    session.workspaces.autopilotObjectiveExists session.workspaces.saveLargePaste session.workspaces.diff
    session.mcp.enable session.mcp.disable session.mcp.reload session.mcp.executeSampling
    session.mcp.setEnvValueMode session.mcp.removeGitHub session.mcp.startServer session.mcp.restartServer
    session.mcp.stopServer session.mcp.oauth.authenticationStateChanged session.mcp.oauth.login session.mcp.oauth.probe
    session.mcp.oauth.prepareLogin session.mcp.oauth.cancelLogin
    session.mcp.apps.readResource session.mcp.apps.listTools session.mcp.apps.callTool
    session.mcp.apps.setHostContext session.mcp.apps.getHostContext session.mcp.apps.diagnose
    session.mcp.resources.read session.mcp.resources.list session.mcp.resources.listTemplates
    session.plugins.reload session.plugins.install session.plugins.uninstall session.plugins.update
    session.plugins.enable session.plugins.disable session.plugins.marketplaces.list session.plugins.marketplaces.add
    session.plugins.marketplaces.remove session.plugins.marketplaces.browse session.plugins.marketplaces.refresh
    session.provider.sync session.lsp.initialize
    session.connectors.getCapabilities session.connectors.getStatus session.connectors.list
    session.connectors.connect session.connectors.continueConnection session.connectors.disconnect
    session.connectors.reconcile session.connectors.reconcileForStartup session.connectors.reconnect
    session.connectors.refresh session.connectors.withdrawProjection
    session.diagnostics.configure session.diagnostics.read
    session.extensions.enable session.extensions.disable session.extensions.reload
    session.extensions.sendAttachmentsToMessage
    session.tools.execute
    session.commands.invoke session.commands.enqueue session.telemetry.setFeatureOverrides
    session.permissions.paths.add
    session.permissions.paths.updatePrimary session.permissions.paths.isPathWithinAllowedDirectories
    session.permissions.paths.isPathWithinWorkspace session.permissions.locations.resolve
    session.permissions.locations.apply
    session.permissions.folderTrust.isTrusted session.permissions.folderTrust.addTrusted
    session.metadata.recordContextChange session.metadata.setWorkingDirectory session.contentExclusion.checkPaths
    session.shell.exec session.shell.kill session.shell.executeUserRequested session.shell.cancelUserRequested
    session.remote.enable session.remote.disable session.remote.notifySteerableChanged session.visibility.set
    sessions.reloadPluginHooks sessions.loadDeferredRepoHooks`,
  foreground: "session.getForeground session.setForeground",
  free: "ping status.get auth.getStatus models.list models.getBuiltInCatalog tools.list commands.list",
  own: `
    account.getQuota secrets.addFilterValues
    mcp.config.list
    mcp.installations.list mcp.installations.status
    sandbox.getHostSupport catalog.search plugins.list
    plugins.marketplaces.list
    skills.installations.list
    skills.installations.status
    skills.config.setDisabledSkills skills.config.setSkillDisabled
    user.settings.reload user.settings.get managedSettings.read
    sessions.getClientMetadata sessions.findByTaskId sessions.findByPrefix sessions.getLastForContext
    sessions.getSizes sessions.checkInUse sessions.enrichMetadata sessions.listNonEmptySessionIds
    sessions.getRemoteControlStatus`,
  "own-host": `
    hooks.discover
    mcp.config.add mcp.config.update mcp.config.remove mcp.config.enable mcp.config.disable
    mcp.config.reload mcp.discover mcp.planInstall mcp.prepareInstall mcp.applyInstall mcp.planUninstall
    mcp.applyUninstall mcp.installations.recover
    mcp.installations.cancel extensions.discover extensions.enable extensions.disable
    catalog.select plugins.install plugins.uninstall plugins.update plugins.updateAll plugins.enable
    plugins.disable plugins.marketplaces.add plugins.marketplaces.remove
    plugins.marketplaces.browse plugins.marketplaces.refresh
    skills.planInstall skills.applyInstall skills.planUninstall skills.applyUninstall
    skills.installations.recover skills.installations.cancel
    skills.installations.setEnabled skills.discover skills.getDiscoveryPaths
    agents.discover agents.getDiscoveryPaths instructions.discover instructions.getDiscoveryPaths
    user.settings.set`,
  setup: "plugins.builtin.set llmInference.setProvider llmInference.httpResponseStart llmInference.httpResponseChunk",
  bulk: "sessions.bulkDelete sessions.pruneOld",
  never: REFUSED_METHODS.join(" "),
};

const SCOPES = new Map<string, Scope>();
for (const [scope, names] of Object.entries(TABLE)) {
  for (const name of names.split(/\s+/)) if (name !== "") SCOPES.set(name, scope as Scope);
}

/** The scope of a method. A method that is not in the table is never passed on. */
export function scopeOf(method: string): Scope {
  return SCOPES.get(method) ?? "never";
}

export function isKnownMethod(method: string): boolean {
  return SCOPES.has(method);
}

/** Methods of other scopes that can also approve tools: by commands such as `/allow-all`, or by trusting folders. */
const APPROVING = new Set(
  `session.commands.invoke session.commands.enqueue session.sandbox.disableForSession session.permissions.paths.add
  session.permissions.paths.updatePrimary session.permissions.locations.apply session.permissions.folderTrust.addTrusted
  user.settings.set`.split(/\s+/),
);

/** Whether a method may approve tools without asking the client. */
export function approves(method: string): boolean {
  return scopeOf(method) === "approve" || APPROVING.has(method);
}

/** All methods in the table. */
export function knownMethods(): string[] {
  return [...SCOPES.keys()];
}
