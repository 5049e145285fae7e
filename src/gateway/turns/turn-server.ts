import { isFleetError } from "../../errors.js";
import { sessionMoved } from "../../hosts/problems.js";
import type { SessionRecord } from "../../model/session.js";
import { isRunning } from "../../pool/server.js";
import { isInTurn } from "../../runtime/client/activity.js";
import { deadline, pause } from "../../runtime/deadline.js";
import { historyBytes } from "../../runtime/history/session-state.js";
import { RpcError } from "../../runtime/wire/rpc-client.js";
import type { TurnTaking } from "../../sessions/use/turn-taking.js";
import type { Router } from "../routing/router.js";
import type { ClientState } from "../state/client-state.js";
import type { DoorContext } from "../state/door/door-state.js";
import { failure } from "../state/door/report.js";
import type { ServerLink } from "../state/links.js";
import type { Prompt, Turn } from "../state/turn.js";

/** How long to retry while a server is ending, and how often, in milliseconds. */
const ENDING_MS = 2_000;
const ENDING_POLL_MS = 20;

/**
 * As {@link Router.local}, but retries while a server is ending. Such a server refuses connections for a moment. Once it has
 * ended, it is started again.
 */
export async function linkOnceEnded(state: ClientState, router: Router, record: SessionRecord): Promise<ServerLink> {
  const until = performance.now() + ENDING_MS;
  for (;;) {
    try {
      return await router.local(record);
    } catch (error) {
      const isEnding = isFleetError(error, "FLEET_SERVER_LOST") || isFleetError(error, "FLEET_SERVER_UNREACHABLE");
      if (!isEnding || performance.now() > until || state.gone.aborted) throw error;
    }
    await pause(ENDING_POLL_MS, undefined);
  }
}

/** This turn, as the rules of `turn-taking.ts` see it. */
export function placeOf(state: ClientState, router: Router, turn: Turn): TurnTaking {
  const { door, user, holder, report } = state;
  const { sessions, config } = door;
  const { record, abort } = turn;
  const { id } = record;
  const waitMs = config.serve.turnWaitMs;
  const { signal } = abort;
  const fence = holder.lease?.sessionId === id ? holder.lease.fence : undefined;
  return {
    sessionId: id,
    permit: async ({ always }) => await sessions.permit(record, { waitMs, signal }, { always, user, fence }),
    server: async () => {
      const { server } = await linkOnceEnded(state, router, turn.record);
      turn.marked = server;
      return server;
    },
    admitted: async (server) => {
      if (await sessions.admitted(server, id)) return true;
      // Read the record again, because the session may be on another server by now.
      turn.record = await sessions.recordFor(id, user);
      if (turn.record.serverId !== server.id) state.unloaded(id);
      return false;
    },
    unreleased: (error) => report.event({ event: "failed", sessionId: id, ...failure(error) }),
    waitMs,
    signal,
  };
}

/**
 * Checks that a session which may change hosts is still here, because it may have moved while the prompt waited.
 *
 * @throws FleetError `FLEET_SESSION_MOVED`; `FLEET_HOST_AWAY` when other hosts may count this one as gone;
 * `FLEET_STORAGE_UNUSABLE`.
 */
export async function assertHere({ directory, store }: DoorContext, { id }: SessionRecord): Promise<void> {
  if (!directory.isShared) return;
  // Read the record again, right before the prompt is written.
  const now = await store.sessions.read(id);
  if (now !== null && !(await directory.has(now))) throw sessionMoved(now, null);
  await directory.assertStorage();
}

/** Notes what is needed to find out later whether the server had begun the prompt. Call it right before the write. */
export function noteSent(state: ClientState, { sent, record: { id } }: Turn, prompt: Prompt, link: ServerLink): void {
  const home = state.homeOf(id, link.server);
  prompt.sent = { link, historyBytes: historyBytes(home, id), seenBefore: state.ends.seen(id), messageIds: null };
  sent.add(prompt);
}

/**
 * Asks the server whether the turn is over. Never rejects.
 *
 * @param answerMs how long the server may take to answer, in milliseconds
 */
export async function isIdle(router: Pick<Router, "local">, turn: Turn, answerMs: number): Promise<boolean> {
  try {
    const { upstream } = await router.local(turn.record);
    using limit = deadline(answerMs);
    const request = async (method: string, params: object) =>
      await upstream.request(method, params, undefined, limit.signal);
    return (await isInTurn(request, turn.record.id)) !== true;
  } catch (error) {
    // Any other error, such as a timeout or a store that does not answer, proves nothing.
    return error instanceof RpcError || NOT_HERE.some((code) => isFleetError(error, code)) || hasGone(turn);
  }
}

/** Errors that show that the session is not in the memory of a server here, so that nothing runs in it. */
const NOT_HERE = ["FLEET_SESSION_NOT_FOUND", "FLEET_SESSION_MOVED", "FLEET_SESSION_LOST"] as const;

/** Whether the server that holds the turn's use marker has ended. */
function hasGone({ marked }: Turn): boolean {
  try {
    return marked !== undefined && !isRunning(marked);
  } catch {
    return false; // this process has no file descriptors left to look
  }
}

/** Ends a turn whose lease is lost, so that the next holder's turn does not run into it. */
export async function abortTurn(state: ClientState, router: Router, record: SessionRecord, reason: unknown) {
  const sessionId = record.id;
  state.warn(sessionId, reason instanceof Error ? reason.message : String(reason));
  try {
    await (await router.local(record)).upstream.ask("session.abort", { sessionId });
  } catch (error) {
    state.report.event({ event: "failed", sessionId, ...failure(error, "The turn could not be ended") });
  }
}
