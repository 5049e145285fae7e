import { randomUUID } from "node:crypto";
import type { PermissionHandler, SessionConfig, SessionEvent } from "@github/copilot-sdk";
import { abortable, type Clock, deadlineOn } from "../base/clock.js";
import { FleetError, option, quote } from "../base/errors.js";
import { isObject } from "../base/values/text.js";
import type { Config } from "../config/schema.js";
import type { HostDirectory } from "../servers/directory.js";
import type { Store } from "../store/store.js";

/** How many closed requests to remember, so that a late answer gets a clear error. */
const MOST_CLOSED = 1_000;
/** How often to check whether the server of a waiting request is about to end, in milliseconds. */
const LOOK_MS = 1_000;

/** A request that waits for an answer. The first call of `close` ends it, and later calls do nothing. */
interface WaitingRequest {
  readonly request: AgentRequest;
  /** Resolves at the end of the request. Never rejects. */
  readonly verdict: Promise<Verdict>;
  close(verdict: Verdict): void;
}

type Listener = (change: RequestChange) => void;

interface AgentRequestsContext {
  /** How long a request waits for its answer, in milliseconds. */
  answerMs: number;
  clock: Clock;
  /** As {@link isEnding}. */
  isEnding: (request: AgentRequest) => Promise<boolean>;
}

/**
 * The permission requests and questions of the agents in this process's turns. They are only in memory, because they
 * end with this process anyway: when its connection to a server ends, the runtime ends the turn (measured with 1.0.85).
 */
export class AgentRequests {
  readonly #waiting = new Map<string, WaitingRequest>();
  readonly #closed = new Map<string, AgentRequest>();
  readonly #listeners = new Set<Listener>();
  readonly #ownListeners = new Set<Listener>();
  readonly #context: AgentRequestsContext;
  #isLooking = false;

  constructor(context: AgentRequestsContext) {
    this.#context = context;
  }

  /** How many requests wait. */
  get size(): number {
    return this.#waiting.size;
  }

  /**
   * Opens a request.
   *
   * @param until when it aborts, the request expires at once
   */
  open(session: string, user: string, asked: Asked, until?: AbortSignal): WaitingRequest {
    const { answerMs } = this.#context;
    const now = Date.now();
    const request: AgentRequest = {
      id: randomUUID(),
      session,
      user,
      kind: asked.permission === null ? "question" : "permission",
      openedAt: new Date(now).toISOString(),
      expiresAt: new Date(now + answerMs).toISOString(),
      ...asked,
      outcome: null,
    };
    let resolve: (verdict: Verdict) => void = () => undefined;
    const verdict = new Promise<Verdict>((done) => {
      resolve = done;
    });
    const waiting: WaitingRequest = {
      request,
      verdict,
      close: (given) => {
        if (!this.#waiting.delete(request.id)) return;
        this.#remember({ ...request, outcome: given.outcome });
        resolve(given);
      },
    };
    this.#waiting.set(request.id, waiting);
    this.#changed({ type: "request.opened", request });
    void this.#expire(waiting, until);
    if (!this.#isLooking) void this.#lookForEnds();
    return waiting;
  }

  async #expire({ verdict, close }: WaitingRequest, until: AbortSignal | undefined): Promise<void> {
    const { clock, answerMs } = this.#context;
    using limit = deadlineOn(clock, answerMs, until);
    await abortable(verdict, limit.signal).catch(() => close({ outcome: "expired" }));
  }

  /**
   * Expires each request whose server is about to end. Otherwise, the drain of that server would wait for the request's
   * turn. Never rejects.
   */
  async #lookForEnds(): Promise<void> {
    const { clock, isEnding } = this.#context;
    this.#isLooking = true;
    while (this.#waiting.size > 0) {
      await clock.wait(LOOK_MS, { ref: false });
      for (const { request, close } of [...this.#waiting.values()]) {
        // If the store does not answer, look again in the next round.
        if (await isEnding(request).catch(() => false)) close({ outcome: "expired" });
      }
    }
    this.#isLooking = false;
  }

  #remember(closed: AgentRequest): void {
    const { permission } = closed;
    // Leave out the details, which may be long.
    const brief = permission === null ? null : { kind: permission.kind };
    this.#closed.set(closed.id, { ...closed, permission: brief, question: null });
    const [oldest] = this.#closed.keys();
    if (this.#closed.size > MOST_CLOSED && oldest !== undefined) this.#closed.delete(oldest);
    this.#changed({ type: "request.closed", request: closed });
  }

  #changed(change: RequestChange): void {
    this.announce(change);
    for (const listener of [...this.#ownListeners]) listener(change);
  }

  /** A user's requests in a session: those that wait, and the most recently closed ones. */
  list(session: string, user: string): AgentRequest[] {
    const known = [...[...this.#waiting.values()].map(({ request }) => request), ...this.#closed.values()];
    return known.filter((each) => each.session === session && each.user === user);
  }

  /**
   * Answers a request.
   *
   * @throws FleetError `FLEET_NAME_NOT_FOUND` when this process does not have such a request of the user;
   * `FLEET_REQUEST_CLOSED` when the request no longer waits; `FLEET_USAGE_INVALID` when the answer does not fit the
   * request.
   */
  answer(session: string, user: string, id: string, answer: RequestAnswer): AgentRequest {
    const request = this.list(session, user).find((each) => each.id === id);
    if (request === undefined) throw requestNotFound(session, id);
    const verdict = verdictOf(request, answer);
    if (request.outcome !== null) throw requestClosed(id, request.outcome);
    this.#waiting.get(id)?.close(verdict);
    return { ...request, outcome: verdict.outcome };
  }

  /** Calls the listener when a request of this process changes. @returns a function that removes the listener */
  onOwn(listener: Listener): () => void {
    this.#ownListeners.add(listener);
    return () => void this.#ownListeners.delete(listener);
  }

  /**
   * Calls the listener when a request of this process or of another host changes. @returns a function that removes it
   */
  on(listener: Listener): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Reports a change, perhaps from another host, to the listeners that {@link on} added. */
  announce(change: RequestChange): void {
    for (const listener of [...this.#listeners]) listener(change);
  }
}

/** The options of a turn that concern the agent's requests. */
export interface AskOptions {
  /** Called when a request is opened, and when it is closed. */
  onRequest?: ((change: RequestChange) => void) | undefined;
  /** Once this signal aborts, nobody is asked: waiting requests expire, and each new request expires at once. */
  askUntil?: AbortSignal | undefined;
}

export interface AskerOptions {
  user: string;
  /** Whether the user answers the agent's requests through {@link AgentRequests}, for example over HTTP. */
  interactive?: boolean | undefined;
}

type Handlers = Required<Pick<SessionConfig, "onPermissionRequest" | "onUserInputRequest">>;

interface Turn extends AskOptions {
  waiting: Set<WaitingRequest>;
  /** The texts of the runtime's questions, by the runtime's request ids. */
  questions: Map<string, string>;
}

/**
 * Puts the permission requests and questions of the runtime into {@link AgentRequests}, where the user answers them,
 * for example over HTTP. Each open session object has its own Asker. The runtime sends each request to all clients of a
 * session, so outside of the turns of its session object, an Asker leaves the requests to the other clients.
 */
export class Asker {
  readonly #requests: AgentRequests;
  readonly #sessionId: string;
  readonly #user: string;
  #turn: Turn | null = null;

  constructor(requests: AgentRequests, sessionId: string, user: string) {
    this.#requests = requests;
    this.#sessionId = sessionId;
    this.#user = user;
  }

  /**
   * The SDK handlers for the session's settings. Unless `session.approve` is "ask", nobody is asked for permissions.
   */
  handlersFor({ session: { approve } }: Pick<Config, "session">): Partial<Handlers> {
    const { onPermissionRequest, onUserInputRequest } = this.#handlers;
    return approve === "ask" ? { onPermissionRequest, onUserInputRequest } : { onUserInputRequest };
  }

  readonly #handlers: Handlers = {
    onPermissionRequest: async (permission) => {
      const asked = { permission: shortened(permission) as AskedPermission, question: null };
      const { outcome, reason, isKnown = false } = await this.#ask(asked);
      if (isKnown) return { kind: "no-result" };
      switch (outcome) {
        case "approved":
          return { kind: "approve-once" };
        case "denied":
          return reason === undefined ? { kind: "reject" } : { kind: "reject", feedback: reason };
        case "expired":
          return { kind: "user-not-available" };
        default:
          return { kind: "no-result" };
      }
    },
    onUserInputRequest: async ({ question, choices = [], allowFreeform = true }) => {
      const isOpen = choices.length === 0;
      const asked = { question, choices: isOpen ? null : choices, freeform: allowFreeform || isOpen };
      const { outcome, answer = "", isKnown = false } = await this.#ask({ permission: null, question: asked });
      // This client must not answer. Never settle, because the SDK would send any result or error as an answer.
      if (outcome === "cancelled" || isKnown) return await new Promise<never>(() => undefined);
      if (outcome === "answered") return { answer, wasFreeform: !choices.includes(answer) };
      return { answer: "Nobody answered. Continue without an answer.", wasFreeform: true };
    },
  };

  /** Wraps a handler so that it decides only in turns of this session object. */
  guard(handler: PermissionHandler): PermissionHandler {
    return (request, invocation) => (this.#turn === null ? { kind: "no-result" } : handler(request, invocation));
  }

  /** Begins a turn. The disposal ends it, and cancels the requests that still wait. */
  begin({ onRequest, askUntil }: AskOptions): Disposable {
    const turn: Turn = { onRequest, askUntil, waiting: new Set(), questions: new Map() };
    this.#turn = turn;
    return {
      [Symbol.dispose]: () => {
        if (this.#turn === turn) this.#turn = null;
        for (const each of turn.waiting) each.close({ outcome: "cancelled" });
      },
    };
  }

  /** Receives each event of a turn. Closes a request when an event shows that another client has answered it. */
  saw(event: SessionEvent): void {
    const questions = this.#turn?.questions;
    if (event.type === "user_input.requested") questions?.set(event.data.requestId, event.data.question);
    if (event.type === "user_input.completed") {
      const { requestId, answer } = event.data;
      const text = questions?.get(requestId);
      questions?.delete(requestId);
      const found = this.#waitingFor(({ question }) => text !== undefined && question?.question === text);
      found?.close({ outcome: answer === undefined ? "cancelled" : "answered", isKnown: true });
    }
    if (event.type === "permission.completed") {
      const { toolCallId, result } = event.data;
      const found = this.#waitingFor(
        (request) => toolCallId !== undefined && request.permission?.toolCallId === toolCallId,
      );
      found?.close({ outcome: outcomeOf(result.kind), isKnown: true });
    }
  }

  #waitingFor(isMeant: (request: WaitingRequest["request"]) => boolean): WaitingRequest | undefined {
    return [...(this.#turn?.waiting ?? [])].find(({ request }) => isMeant(request));
  }

  async #ask(asked: Asked): Promise<Verdict> {
    const turn = this.#turn;
    if (turn === null) return { outcome: "cancelled" };
    const waiting = this.#requests.open(this.#sessionId, this.#user, asked, turn.askUntil);
    turn.waiting.add(waiting);
    turn.onRequest?.({ type: "request.opened", request: waiting.request });
    const verdict = await waiting.verdict;
    turn.waiting.delete(waiting);
    turn.onRequest?.({ type: "request.closed", request: { ...waiting.request, outcome: verdict.outcome } });
    return verdict;
  }
}

/** The longest text in a permission, in characters. A permission to write contains the whole change. */
const LONGEST_TEXT = 100_000;

/** Truncates long texts, and appends to each how many characters are missing. */
function shortened(value: unknown): unknown {
  if (typeof value === "string") {
    const more = value.length - LONGEST_TEXT;
    return more <= 0 ? value : `${value.slice(0, LONGEST_TEXT)}… (${more} more characters)`;
  }
  if (Array.isArray(value)) return value.map(shortened);
  if (!isObject(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, shortened(each)]));
}

/** @param kind the kind of the result that the runtime reports (1.0.85): `approved…`, `denied…` or `cancelled` */
function outcomeOf(kind: string): RequestOutcome {
  if (kind.startsWith("approved")) return "approved";
  return kind === "cancelled" ? "cancelled" : "denied";
}

/** Whether a request has to expire because its session was deleted, or because its server is being drained. */
export async function isEnding(
  { store, directory }: { store: Store; directory: Pick<HostDirectory, "own"> },
  { session, user }: Pick<AgentRequest, "session" | "user">,
): Promise<boolean> {
  const record = await store.sessions.read(session);
  if (record === null) return true;
  const { host = null, serverId } = record;
  const isHere = host === null || host === directory.own;
  const registry = isHere ? await store.registry.read() : await store.hosts?.registryOf(host);
  if (registry?.servers[serverId]?.state !== "draining") return false;
  // A suspension drains the user's server, too. Then leave the request open until the suspension aborts the turn,
  // because the turn would go on after an answer.
  return (await store.limits.read(user))?.suspended === undefined;
}

const LIST = "GET /v1/sessions/{id}/requests lists the requests that wait.";

export function requestNotFound(session: string, id: string): FleetError {
  const message = `Session ${quote(session)} has no request ${quote(id)} of this user.`;
  return new FleetError("FLEET_NAME_NOT_FOUND", message, { suggestions: [LIST] });
}

const ENDS: Readonly<Record<RequestOutcome, string>> = {
  approved: "it was approved",
  denied: "it was denied",
  answered: "it was answered",
  expired: "nobody answered in time",
  cancelled: "its turn has ended",
};

function requestClosed(id: string, outcome: RequestOutcome): FleetError {
  const message = `Request ${quote(id)} no longer waits for an answer: ${ENDS[outcome]}.`;
  return new FleetError("FLEET_REQUEST_CLOSED", message, { suggestions: [LIST] });
}

/**
 * Converts an answer into a verdict. @throws FleetError `FLEET_USAGE_INVALID` when the answer does not fit the request.
 */
function verdictOf({ kind, question }: AgentRequest, { decision, reason, answer }: RequestAnswer): Verdict {
  if (kind === "permission") {
    if (answer !== undefined) throw invalid(`${option("answer")} answers a question, and this is a permission.`);
    if (decision === undefined) throw invalid(`A permission needs ${option("decision")}: "approve" or "deny".`);
    if (decision === "deny") return { outcome: "denied", reason };
    if (reason !== undefined) throw invalid(`${option("reason")} is allowed only with "deny".`);
    return { outcome: "approved" };
  }
  if (decision !== undefined || reason !== undefined) {
    const given = option(decision === undefined ? "reason" : "decision");
    throw invalid(`${given} is for a permission, and this is a question.`);
  }
  if (answer === undefined || answer.trim() === "") throw invalid(`A question needs ${option("answer")}, a text.`);
  const { choices, freeform } = question ?? { choices: null, freeform: true };
  if (!freeform && choices?.includes(answer) === false) {
    throw invalid(`${option("answer")} ${quote(answer)} is not a choice. Allowed: ${choices.map(quote).join(", ")}.`);
  }
  return { outcome: "answered", answer };
}

function invalid(message: string): FleetError {
  return new FleetError("FLEET_USAGE_INVALID", message);
}

/**
 * The permission that the agent asks for, with the runtime's fields, such as `fullCommandText` for the kind `shell`.
 */
export type AskedPermission = Readonly<{ kind: string } & Record<string, unknown>>;

export interface AskedQuestion {
  question: string;
  /** The answers that the agent proposes. Null if it proposes none. */
  choices: string[] | null;
  /** Whether an answer may differ from the choices. */
  freeform: boolean;
}

/** Everything that the agent asks: a permission, or a question. */
export type Asked =
  | { permission: AskedPermission; question: null }
  | {
      permission: null;
      question: AskedQuestion;
    };

/**
 * How a request ended. `expired`: nobody answered in time, or the fleet drains. `cancelled`: the turn ended first, for
 * example because it was aborted or its server died.
 */
export type RequestOutcome = (typeof REQUEST_OUTCOMES)[number];

export const REQUEST_OUTCOMES = ["approved", "denied", "answered", "expired", "cancelled"] as const;
export const REQUEST_KINDS = ["permission", "question"] as const;

/** A permission or a question of the agent, which waits for an answer from the user whose turn runs. */
export interface AgentRequest {
  id: string;
  /** The id of the session. */
  session: string;
  /** The user in whose turn the agent asks. Only this user may answer. */
  user: string;
  kind: (typeof REQUEST_KINDS)[number];
  openedAt: string;
  /** If nobody has answered by this time, a permission is denied, and the agent has to continue without an answer. */
  expiresAt: string;
  /** Null in a question. */
  permission: AskedPermission | null;
  /** Null in a permission. */
  question: AskedQuestion | null;
  /** Null while the request waits. */
  outcome: RequestOutcome | null;
}

/** The answer to a request: a decision about a permission, or the answer to a question. */
export interface RequestAnswer {
  decision?: "approve" | "deny" | undefined;
  /** For a denial: the text that the model reads. */
  reason?: string | undefined;
  answer?: string | undefined;
}

export interface RequestChange {
  type: "request.opened" | "request.closed";
  request: AgentRequest;
}

/** How a request ended, with the reason or the answer for the agent. */
interface Verdict extends Pick<RequestAnswer, "reason" | "answer"> {
  outcome: RequestOutcome;
  /** Whether the runtime already has an answer, because another client answered. */
  isKnown?: boolean;
}
