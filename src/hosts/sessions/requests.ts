import { endingAtOnce } from "../../base/clock.js";
import {
  type AgentRequest,
  type AgentRequests,
  type RequestAnswer,
  type RequestChange,
  requestNotFound,
} from "../../sessions/requests.js";
import type { SessionFinder } from "../../sessions/view.js";
import type { FleetHosts } from "../fleet-hosts.js";

interface RequestsContext {
  finder: SessionFinder;
  hosts: FleetHosts;
  requests: AgentRequests;
}

/** The agent requests that wait, on any host, in a user's turns of a session, oldest first. */
export async function listRequests(
  { finder, hosts }: RequestsContext,
  id: string,
  user: string,
): Promise<AgentRequest[]> {
  await finder.find(id, user);
  const { answers } = await hosts.everywhere(async (host) => await host.requests({ id, user }));
  const waiting = answers.flatMap(({ answer }) => answer).filter(({ outcome }) => outcome === null);
  return waiting.sort((one, other) => one.openedAt.localeCompare(other.openedAt));
}

/**
 * Answers a request on the host that runs the turn.
 *
 * @throws FleetError `FLEET_NAME_NOT_FOUND` when no host that answers has the request; and the errors of
 * `SessionFinder.find` and `AgentRequests.answer`.
 */
export async function answerRequest(
  { finder, hosts }: RequestsContext,
  { id, user, request, answer }: { id: string; user: string; request: string; answer: RequestAnswer },
): Promise<AgentRequest> {
  await finder.find(id, user);
  const { answers } = await hosts.everywhere(async (host) => await host.requests({ id, user }));
  const asking = answers.find(({ answer: known }) => known.some((each) => each.id === request));
  if (asking === undefined) throw requestNotFound(id, request);
  return await asking.host.answerRequest({ id, user, request, answer });
}

/** How many unread changes to keep for a follower. A follower that reads too slowly misses further changes. */
const MOST_CHANGES = 1_000;

interface Whose {
  id: string;
  user: string;
}

/**
 * Calls the listener at each change of a user's requests in a session, at any host. The caller must have checked that
 * the user may use the session.
 *
 * @returns a function that removes the listener
 */
export function onRequests(
  { requests }: Pick<RequestsContext, "requests">,
  { id, user }: Whose,
  listener: (change: RequestChange) => void,
): () => void {
  return requests.on((change) => {
    if (change.request.session === id && change.request.user === user) listener(change);
  });
}

/**
 * Yields the changes of a user's requests in a session from now on, at any host, until the signal aborts or the caller
 * stops reading.
 */
export function followRequests(
  context: RequestsContext,
  id: string,
  { user, signal }: { user: string; signal: AbortSignal },
): AsyncGenerator<RequestChange, void, undefined> {
  const changes = endingAtOnce(signal, (signal) => changesOf(context, { id, user }, signal));
  // A generator does nothing before its first step. Take this step now: it adds the listener, and yields null.
  void changes.next();
  return changes as AsyncGenerator<RequestChange, void, undefined>;
}

async function* changesOf(
  context: RequestsContext,
  whose: Whose,
  signal: AbortSignal,
): AsyncGenerator<RequestChange | null, void, undefined> {
  let waiting: RequestChange[] = [];
  let wake = (): void => undefined;
  const stop = onRequests(context, whose, (change) => {
    if (waiting.length < MOST_CHANGES) waiting.push(change);
    wake();
  });
  const end = () => {
    stop();
    wake();
  };
  signal.addEventListener("abort", end);
  try {
    yield null;
    await context.finder.find(whose.id, whose.user);
    while (!signal.aborted) {
      if (waiting.length === 0) await new Promise<void>((resolve) => (wake = resolve));
      const changes = waiting;
      waiting = [];
      yield* changes;
    }
  } finally {
    signal.removeEventListener("abort", end);
    stop();
  }
}

/**
 * Tells the other hosts about each change of an agent request on this host, because clients may follow the session
 * there.
 */
export function shareRequests({ hosts, requests }: Pick<RequestsContext, "hosts" | "requests">): void {
  if (hosts.own.name === null) return;
  requests.onOwn((change) => {
    const tell = hosts.everywhere(async (host) => host === hosts.own || (await host.noteRequest({ change })));
    // Ignore a failure, because a client there can still find the request in the list.
    tell.catch(() => undefined);
  });
}
