/**
 * Methods that no client may use. `why` completes the refusal: "METHOD is not allowed here: …". `docs/front-door.md` lists
 * the methods for users, and `test/gateway/methods.test.ts` fails when one is missing there.
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

export const REFUSED_METHODS: readonly string[] = [...REASONS.keys()];

/** The reason why no client may use a method, as the end of a sentence. */
export function whyRefused(method: string): string {
  return REASONS.get(method) ?? "the front door does not pass it on";
}
