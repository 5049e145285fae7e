import { deadline, pause } from "../../base/clock.js";
import { isFleetError } from "../../base/errors.js";
import type { SessionRecord } from "../../base/session.js";
import { assertCredits, type CreditConfig } from "../../base/usage.js";
import { isInTurn } from "../../runtime/client/raw-connection.js";
import { historyBytes } from "../../runtime/history/session-state.js";
import { RpcError } from "../../runtime/wire/rpc-client.js";
import { sessionMoved } from "../../servers/directory.js";
import { isRunning } from "../../servers/server.js";
import { giveProvider } from "../../sessions/memory/open-notes.js";
import { isUnloaded, missingAccess } from "../../sessions/use/load.js";
import { forgetApprovals } from "../../sessions/use/open-session.js";
import type { UseRequest } from "../../sessions/use/permit.js";
import { assertAccepted, credentialsOf } from "../../sessions/use/session-token.js";
import type { SessionUse } from "../../sessions/use/use-session.js";
import { bringsCredentials } from "../policy/settings.js";
import { OPEN_MS, type Router } from "../routing/router.js";
import { ownGitHubToken } from "../routing/upstream-transport.js";
import type { ClientState } from "../state/client-state.js";
import type { ServerLink } from "../state/links.js";
import { failure } from "../state/report.js";
import type { Prompt, Turn, TurnEnds } from "../state/turn.js";

/** How long, and how often, to try to connect again while a server is ending, in milliseconds. */
const ENDING_MS = 2_000;
const ENDING_POLL_MS = 20;

/**
 * Like {@link Router.linkHere}, but tries again while a server is ending. Such a server refuses connections. Once it
 * has ended, the next try starts it again.
 */
export async function linkOnceEnded(state: ClientState, router: Router, record: SessionRecord): Promise<ServerLink> {
  const until = performance.now() + ENDING_MS;
  for (;;) {
    try {
      return await router.linkHere(record);
    } catch (error) {
      const isEnding = isFleetError(error, "FLEET_SERVER_LOST") || isFleetError(error, "FLEET_SERVER_UNREACHABLE");
      if (!isEnding || performance.now() > until || state.gone.aborted) throw error;
    }
    await pause(ENDING_POLL_MS, undefined);
  }
}

/**
 * The arguments of `useSession` for a turn of this client. `at` is the server on which the client has the session open.
 */
export function turnRequest(state: ClientState, { record, abort }: Turn): UseRequest {
  const { door, user, identity, attachments, links } = state;
  const { id, serverId } = record;
  const attachment = attachments.get(id);
  // A client may send prompts to a session that it never opened. Then `attachment` is undefined, and the turn uses the
  // client's connection to the session's server, if there is one. Only a session that the client opened and that was
  // unloaded must be loaded first.
  const isLoaded = attachment?.attached !== false;
  return {
    record,
    user,
    isTurn: true,
    tokenId: (identity.shownTokenId === undefined ? identity.tokenId : identity.shownTokenId) ?? undefined,
    at: isLoaded ? links.connected(attachment?.linkId ?? serverId)?.server : undefined,
    fence: identity.lease?.sessionId === id ? identity.lease.fence : undefined,
    waitMs: door.config.serve.turnWaitMs,
    openMs: OPEN_MS,
    signal: abort.signal,
    sharedUntil: door.closed,
  };
}

/**
 * Connects the client to the server of its turn, by {@link linkOnceEnded}. If the client has the session open, also
 * loads the session there. Call it when the turn's server is not the one that the client is connected to: the session
 * was unloaded or moved, or its server was restarted.
 */
export async function follow(state: ClientState, router: Router, { server, record }: SessionUse): Promise<void> {
  const { attachments, links } = state;
  const open = links.server(attachments.get(record.id)?.linkId ?? "");
  if (open !== undefined && open.server.launchId !== server.launchId) state.unloaded(record.id);
  await linkOnceEnded(state, router, record);
}

/**
 * Makes the turn's server ready for a prompt. Checks that a session which may change hosts is still here, because it
 * may have moved while the prompt waited.
 *
 * @throws FleetError `FLEET_SESSION_MOVED`; `FLEET_HOST_AWAY` when other hosts may count this one as gone;
 * `FLEET_STORAGE_UNUSABLE`; `FLEET_LIMIT_REACHED` when the session has used up its AI credits.
 */
export async function prepare(state: ClientState, turn: Turn, link: ServerLink): Promise<void> {
  await provideModel(state, turn, link);
  const { config, directory, store } = state.door;
  const { id } = turn.record;
  await assertMoreCredits(config, link, turn.record);
  await askAgain(state, turn.record, link);
  if (!directory.isShared) return;
  // Read the record again, right before the prompt is written.
  const now = await store.sessions.read(id);
  if (now !== null && !(await directory.has(now))) throw sessionMoved(now, null);
  await directory.assertStorage();
}

/**
 * Calls {@link forgetApprovals} on a user's own server, unless this client itself has approved more than one tool call.
 */
async function askAgain({ attachments, door }: ClientState, { id }: SessionRecord, link: ServerLink): Promise<void> {
  const { upstream, own } = link;
  if (!own || attachments.get(id)?.approves === true) return;
  await forgetApprovals(door.config, async (name, params) => {
    await upstream.ask(`session.permissions.${name}`, { sessionId: id, ...params }).catch((error: unknown) => {
      // A session that the server loads again has no such approvals.
      if (!isUnloaded(error) && !upstream.closed) throw error;
    });
  });
}

/**
 * Checks that the session has AI credits left. If the server does not have the session in memory, does nothing,
 * because the client's request then fails in the same way, and the door reopens the session and repeats the request.
 *
 * @throws FleetError `FLEET_LIMIT_REACHED` when it has none left
 */
export async function assertMoreCredits(
  config: CreditConfig,
  { upstream }: ServerLink,
  { id: sessionId }: SessionRecord,
): Promise<void> {
  const metrics = async () =>
    await upstream.ask("session.usage.getMetrics", { sessionId }).catch((error: unknown) => {
      if (!isUnloaded(error) && !upstream.closed) throw error;
    });
  await assertCredits(config, sessionId, metrics);
}

/**
 * Gives the server the provider or the GitHub token for the turn's model requests, unless the client brought its own
 * credentials. If the server does not have the session in memory, does nothing, because the prompt then fails in the
 * same way, and the door reopens the session and repeats the prompt.
 */
async function provideModel(state: ClientState, { use, record }: Turn, { upstream }: ServerLink) {
  const { attachments, door, gone } = state;
  const sessionId = record.id;
  const { context } = door.sessions;
  if (use === undefined || bringsCredentials(attachments.get(sessionId)?.asked ?? {})) return;
  const own = ownGitHubToken(state, record);
  const { provider, gitHubToken } =
    own === null ? await missingAccess(context, use, gone) : { provider: null, gitHubToken: own };
  const ask = async (method: string, params: object) => await upstream.ask(method, { sessionId, ...params });
  const ignoreLoss = (error: unknown) => {
    if (!(error instanceof RpcError) && !upstream.closed) throw error;
  };
  if (provider !== null) {
    const give = async () => await ask("session.options.update", { provider });
    await giveProvider(context, use, provider, give).catch(ignoreLoss);
  }
  if (gitHubToken !== null) {
    const given = ask("session.gitHubAuth.setCredentials", credentialsOf(context, gitHubToken));
    assertAccepted(context, use, await given.catch(ignoreLoss));
  }
  use.model.isGiven = true;
}

/** How long a server may be idle without beginning a prompt that it took, in milliseconds. Then the turn is over. */
const NEVER_BEGINS_MS = 5_000;
/** Like `NEVER_BEGINS_MS`, after a `session.error`, which is often the reason why the prompt does not begin. */
const FAILED_MS = 1_000;

/** How long the server must stay idle before the turn in this session counts as over, in milliseconds. */
function patienceMs(ends: Pick<TurnEnds, "hasBegunAll" | "holdsError">, id: string): number {
  if (ends.hasBegunAll(id)) return 0;
  return ends.holdsError(id) ? FAILED_MS : NEVER_BEGINS_MS;
}

/**
 * Records what `resend.ts` needs to find out whether the server had begun the prompt. Call it right before the write.
 */
export function noteSent(state: ClientState, { sent, record: { id } }: Turn, prompt: Prompt, link: ServerLink): void {
  const home = state.homeOf(id, link.server);
  prompt.sent = { link, historyBytes: historyBytes(home, id), seenBefore: state.ends.seen(id), messageIds: null };
  sent.add(prompt);
}

/** Records that a turn has ended. Does not wait until the store has written the record. */
export function noteUse({ door, report }: ClientState, { record, accepted, outcome, over, use, sent }: Turn): void {
  if (accepted && over === "idle") use?.turn.ended(outcome);
  // Count only complete turns. A session with turns must have a history, and a cut turn might not have written one.
  if (!accepted || over !== "idle") return;
  const { prompt } = sent.values().next().value?.request.params ?? {};
  void door.sessions.lastUses.note(record, typeof prompt === "string" ? prompt : "").catch((error: unknown) => {
    report.event({ event: "failed", sessionId: record.id, ...failure(error, "The turn could not be recorded") });
  });
}

/**
 * Asks the server whether the turn is over. An error that proves the end also counts as a yes. Never rejects.
 *
 * @param answerMs how long the server may take to answer, in milliseconds
 */
export async function isIdle(router: Pick<Router, "linkHere">, turn: Turn, answerMs: number): Promise<boolean> {
  try {
    const { upstream } = await router.linkHere(turn.record);
    using limit = deadline(answerMs);
    const request = async (method: string, params: object) =>
      await upstream.request(method, params, undefined, limit.signal);
    return (await isInTurn({ request }, turn.record.id)) !== true;
  } catch (error) {
    // Only these errors prove that the turn is over. A timeout, for example, proves nothing.
    return error instanceof RpcError || NOT_HERE.some((code) => isFleetError(error, code)) || hasGone(turn);
  }
}

/** Resolves when the turn is over. @returns whether the door found the end by asking the server, and not by an event */
export async function untilOver(state: ClientState, router: Router, turn: Turn): Promise<boolean> {
  const { door, ends, attachments } = state;
  const { id } = turn.record;
  return await turn.ended(
    async () => await isIdle(router, turn, door.config.health.timeoutMs),
    () => !attachments.has(id),
    () => patienceMs(ends, id),
  );
}

/** Errors that prove that no server here has the session in memory. So its turn is over. */
const NOT_HERE = ["FLEET_SESSION_NOT_FOUND", "FLEET_SESSION_MOVED", "FLEET_SESSION_LOST"] as const;

/** Whether the server on which the turn runs has ended. */
function hasGone({ use }: Turn): boolean {
  try {
    return use !== undefined && !isRunning(use.server);
  } catch {
    return false; // this process has no file descriptors left to look
  }
}

/** Aborts a turn whose lease is lost, because the next holder of the lease may begin a turn. */
export async function abortTurn(state: ClientState, router: Router, record: SessionRecord, reason: unknown) {
  const sessionId = record.id;
  state.warn(sessionId, reason instanceof Error ? reason.message : String(reason));
  try {
    await (await router.linkHere(record)).upstream.ask("session.abort", { sessionId });
  } catch (error) {
    state.report.event({ event: "failed", sessionId, ...failure(error, "The turn could not be ended") });
  }
}
