import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { ask, Problem, problemFrom, send, sessionPath } from "../api/client.js";
import { eventsOf, follow, type Listener, type StreamEvent } from "../api/follow.js";
import type { AgentRequest, Session, TranscriptEntry } from "../api/types.js";
import {
  type Arrived,
  type Conversation,
  EMPTY,
  ended,
  unexplained,
  withEvents,
  withFailures,
} from "./conversation.js";

/** How long to collect events, so that the page shows many deltas at once, in milliseconds. */
const GATHER_MS = 30;
/** How long no event may come during a turn before the page asks whether the turn still runs, in milliseconds. */
const LOOK_MS = 2_500;
/** The same after the page's own turn has failed. */
const LOOK_SOON_MS = 300;

/** The conversation of a session. Follows the events of the session, including those of turns that others begin. */
export function useConversation(id: string) {
  const [conversation, setConversation] = useState<Conversation>(EMPTY);
  /** Null until it is loaded. */
  const [session, setSession] = useState<Session | null>(null);
  /** Whether a turn that this page began is running. */
  const [isOwnTurn, setOwnTurn] = useState(false);
  /** Whether the last turn that this page began has failed, until the page has looked how it ended. */
  const [isFailed, setFailed] = useState(false);
  /** Why the session cannot be shown; undefined if it can. */
  const [failure, setFailure] = useState<Problem>();
  /** Why the connection is lost at the moment; undefined if it is not. */
  const [trouble, setTrouble] = useState<Problem>();
  const gathered = useRef<Arrived[]>([]);
  const timer = useRef<ReturnType<typeof setTimeout>>();
  const end = useRef(new AbortController());
  /** The last prompt, if its connection was lost before the fleet answered. */
  const lost = useRef<Keyed | null>(null);

  const flush = useCallback(() => {
    clearTimeout(timer.current);
    timer.current = undefined;
    const events = gathered.current.splice(0);
    setConversation((before) => withEvents(before, events));
  }, []);
  const push = useCallback(
    ({ id: eventId, event: type, data }: StreamEvent, isOwn: boolean) => {
      const event = type === "turn.end" || type.startsWith("request.") ? { id: "", type, timestamp: "", data } : data;
      gathered.current.push({ id: eventId, event, isOwnTurn: isOwn });
      timer.current ??= setTimeout(flush, GATHER_MS);
    },
    [flush],
  );
  const reload = useCallback(async () => {
    const { session: found } = await ask<{ session: Session }>("GET", sessionPath(id));
    setSession(found);
    return found;
  }, [id]);

  useEffect(() => {
    const ending = new AbortController();
    end.current = ending;
    const { signal } = ending;
    const listener = {
      event: (event: StreamEvent) => push(event, false),
      trouble: setTrouble,
      failed: setFailure,
    };
    void reload().then(
      () => follow({ path: sessionPath(id, "/events") }, listener, signal),
      (error: unknown) => setFailure(problemFrom(error)),
    );
    void openRequests(id).then((requests) => setConversation(withRequests(requests)));
    return () => {
      ending.abort();
      clearTimeout(timer.current);
    };
  }, [id, push, reload]);

  // The events do not always show that a turn has ended, for example when its server was killed. So ask for the state
  // of the session, and for the end of the transcript.
  const { items, isRunning } = conversation;
  const turns = unexplained(conversation);
  useEffect(() => {
    if (isOwnTurn || (!isRunning && turns === 0)) return;
    const look = async () => {
      const found = await reload();
      setFailed(false);
      if (isRunning && found.state === "active") return setConversation(withRequests(await openRequests(id)));
      const path = sessionPath(id, `/transcript?turns=${Math.max(1, turns)}`);
      const { entries } = await ask<{ entries: TranscriptEntry[] }>("GET", path);
      lost.current = null;
      // If events have come since, look again later.
      setConversation((before) => (before.items === items ? withFailures(ended(before), entries) : before));
    };
    // If the connection is lost, the next look may succeed.
    const timer = setInterval(() => void look().catch(() => undefined), isFailed ? LOOK_SOON_MS : LOOK_MS);
    return () => clearInterval(timer);
  }, [items, isRunning, turns, isOwnTurn, isFailed, id, reload]);

  /** Runs a turn. Never rejects. */
  const send = useCallback(
    async (prompt: string) => {
      setOwnTurn(true);
      let isAccepted = false;
      const arrived = (event: StreamEvent) => {
        isAccepted = true;
        push(event, true);
      };
      const keyed = keyFor(prompt, lost.current);
      const problem = await runTurn(id, keyed, arrived, end.current.signal).then(() => undefined, problemFrom);
      lost.current = !isAccepted && problem?.status === 0 ? keyed : null;
      flush();
      setOwnTurn(false);
      setFailed(isAccepted && problem !== undefined);
      void reload().catch(() => undefined);
      // If the connection was lost, the turn may go on. The stream of the session shows how it ends.
      return { isAccepted, problem: isAccepted && problem?.status === 0 ? undefined : problem };
    },
    [id, push, flush, reload],
  );
  const stop = useCallback(async () => void (await ask("POST", sessionPath(id, "/abort"))), [id]);
  const answered = useCallback((requestId: string) => {
    setConversation((before) => ({ ...before, requests: before.requests.filter((each) => each.id !== requestId) }));
  }, []);
  return {
    conversation,
    session,
    isOwnTurn,
    failure,
    trouble,
    send,
    stop,
    answered,
    /** Never rejects. */
    reload: async () => await reload().catch(() => undefined),
  };
}

const withRequests = (requests: readonly AgentRequest[] | null) => (before: Conversation) =>
  requests === null ? before : { ...before, requests };

/** The permissions and questions that wait for an answer. Null if the API does not answer. */
async function openRequests(id: string): Promise<readonly AgentRequest[] | null> {
  const found = await ask<{ requests: readonly AgentRequest[] }>("GET", sessionPath(id, "/requests")).catch(() => null);
  return found?.requests ?? null;
}

/** A prompt with its idempotency key. With this key, the prompt runs only once, however often it is sent. */
interface Keyed {
  prompt: string;
  key: string;
}

/**
 * Returns the prompt with a key. If the connection was lost when the same prompt was sent before (`lost`), reuses the
 * key of that attempt, because the fleet may have received the prompt. Otherwise, makes a new key.
 */
function keyFor(prompt: string, lost: Keyed | null): Keyed {
  return lost?.prompt === prompt ? lost : { prompt, key: crypto.getRandomValues(new BigUint64Array(2)).join("-") };
}

/** Runs a turn, and passes its events to `event`. Resolves when it is over. @throws Problem */
async function runTurn(
  id: string,
  { prompt, key }: Keyed,
  event: Listener["event"],
  signal: AbortSignal,
): Promise<void> {
  const response = await send("POST", sessionPath(id, "/turns"), {
    body: { prompt },
    headers: { Accept: "text/event-stream", "Idempotency-Key": key },
    signal,
  });
  for await (const each of eventsOf(response)) {
    if (each.event === "problem") throw new Problem(each.data);
    event(each);
    if (each.event === "turn.end") return;
  }
  throw problemFrom("The connection was lost.");
}
