import type {
  CopilotSession,
  MessageOptions,
  PermissionHandler,
  SessionEvent,
  SessionEventHandler,
} from "@github/copilot-sdk";
import { abortable, deadline, pause } from "../../base/clock.js";
import { isFleetError } from "../../base/errors.js";
import type { SessionRecord, SessionUser } from "../../base/session.js";
import { creditLimit, creditsUsed, saysCut } from "../../base/usage.js";
import { creditsUsedUp } from "../../base/user-limits.js";
import type { Config } from "../../config/schema.js";
import { runTurn, type TurnOptions, type TurnReply } from "../../runtime/client/turn.js";
import type { RecordedPrompt } from "../../runtime/history/session-events.js";
import { ownIdentity } from "../../runtime/process/process-table.js";
import type { HostDirectory } from "../../servers/directory.js";
import { isStoreTrouble, type SessionsContext, unseen } from "../problems.js";
import { Asker, type AskerOptions, type AskOptions } from "../requests.js";
import type { SessionView } from "../view.js";
import type { SessionOptions } from "./load.js";
import type { PermitRequest } from "./permit.js";

/** A listener of the caller. `stop` removes it from the SDK's current session object. */
interface Listener {
  listener: SessionEventHandler;
  stop: () => void;
}

/** A session object of the SDK's client, and a promise for the end of its connection. */
export interface AttachedSession {
  session: CopilotSession;
  /** Resolves when the connection has ended. Never rejects. */
  closed: Promise<void>;
}

export type Prompt = Parameters<CopilotSession["send"]>[0] | string;

export type SendOptions = TurnOptions & AskOptions & Omit<PermitRequest, "user" | "fence">;

/** The reply of a turn, and the session after it. */
export interface Used {
  reply: TurnReply;
  /** Null if the session stays open. */
  session: SessionView | null;
}

/** The length of a session's history in bytes, and the prompts after a given position in it. */
export interface PromptHistory {
  bytes: number;
  prompts: RecordedPrompt[];
}

const GOODBYE_MS = 2_000;
/** How long the server may take to report how many AI credits a session has used, in milliseconds. */
const METRICS_MS = 5_000;
/** The pause between two checks whether a session is in a turn, in milliseconds. */
const ASK_MS = 250;

/** A session that this process has open: on a server of this host, or at the front door of another host. */
export abstract class OpenSession<A extends AttachedSession = AttachedSession> {
  readonly record: SessionRecord;
  protected readonly context: SessionsContext;
  readonly #listeners = new Set<Listener>();
  /** Adds a listener to the SDK's current session object. */
  #listen!: (listener: SessionEventHandler) => () => void;
  #attached: A;
  #isLost = false;
  readonly #asker: Asker | null;

  /** @param asker puts the agent's requests to the user during turns of this session; null if nobody answers them */
  protected constructor(context: SessionsContext, record: SessionRecord, attached: A, asker: Asker | null) {
    this.context = context;
    this.record = record;
    this.#attached = attached;
    this.#asker = asker;
    this.#watch(attached);
  }

  /** The SDK's session object. When the connection has ended, the next turn replaces it with a new one. */
  get session(): CopilotSession {
    return this.#attached.session;
  }

  protected get attached(): A {
    return this.#attached;
  }

  protected get isLost(): boolean {
    return this.#isLost;
  }

  /** Runs a turn, after the turns that other users or processes have begun. */
  abstract send(message: Prompt, options?: SendOptions): Promise<TurnReply>;

  /** Like {@link runTurn}, with agent requests and the credit limit. @param closed resolves when the connection ends */
  protected async run(closed: Promise<void>, prompt: MessageOptions, options: SendOptions): Promise<TurnReply> {
    const asker = this.#asker;
    using _ = asker?.begin(options);
    let isCut = false;
    const onEvent = (event: SessionEvent) => {
      asker?.saw(event);
      isCut ||= saysCut(event);
      options.onEvent?.(event);
    };
    const max = creditLimit(this.context.config);
    const cut = (cause?: unknown) => creditsUsedUp(this.record.id, { used: null, max, cause });
    const reply = await runTurn(this.session, closed, prompt, { ...options, onEvent }).catch(async (error: unknown) => {
      const trouble = this.context.provider.troubleOf(this.record.id);
      if (isFleetError(error, "FLEET_TURN_TIMEOUT") && trouble !== null)
        throw error.reworded(({ message }) => ({ message: `${message} ${trouble}` }));
      if (!isFleetError(error, "FLEET_TURN_FAILED")) throw error;
      // The event that reports the used-up credits may be missing (seen once on a busy machine, with 1.0.85).
      isCut ||= max !== null && (await this.#hasUsed(max));
      throw isCut ? cut(error) : error;
    });
    if (isCut) throw cut();
    return reply;
  }

  /** Whether the session has used at least `credits` AI credits. False if its server does not answer. */
  async #hasUsed(credits: number): Promise<boolean> {
    using limit = deadline(METRICS_MS);
    const asked = abortable(this.session.rpc.usage.getMetrics(), limit.signal);
    return await asked.then(
      (metrics) => creditsUsed(metrics) >= credits,
      () => false,
    );
  }

  /** The session's current state. @param isAnswered whether a turn has just ended */
  protected abstract view(isAnswered: boolean): Promise<SessionView>;

  /** The view that this process can make when the store or the other host does not answer. */
  protected abstract viewUnseen(): SessionView;

  /** Deletes an ephemeral session after its use has ended. */
  protected abstract delete(): Promise<void>;

  /** @param fromBytes the position in the history, in bytes, after which to read prompts. Default: reads no prompts. */
  abstract history(fromBytes?: number): Promise<PromptHistory>;

  /** Waits until no turn runs in the session, and no prompt of a disconnected client is on its way to the server. */
  async settled(signal: AbortSignal): Promise<void> {
    // Ask twice, because a prompt may still be on its way. The pause also lets the server write its history.
    for (let idle = 0; idle < 2; ) {
      const { hasActiveWork } = await abortable(this.session.rpc.metadata.activity(), signal);
      idle = hasActiveWork ? 0 : idle + 1;
      if (idle < 2) await pause(ASK_MS, signal);
    }
  }

  /** Until the disposal, each model request of the session that passes through this process waits for `work`. */
  beforeRequests(work: () => Promise<void>): Disposable {
    return this.context.provider.beforeRequests(this.record.id, work);
  }

  protected replace(attached: A): void {
    const { session } = attached;
    if (session !== this.session) for (const each of this.#listeners) each.stop = session.on(each.listener);
    this.#attached = attached;
    this.#isLost = false;
    this.#watch(attached);
  }

  #watch({ session, closed }: A): void {
    this.#keepListeners(session);
    // Replace the SDK's own sendAndWait, which hangs until its timeout when the connection ends during the turn.
    session.sendAndWait = async (message, timeout = 60_000) => (await this.send(message, { timeoutMs: timeout })).event;
    void closed.then(() => {
      if (this.#attached.closed === closed) this.#isLost = true;
    });
  }

  /**
   * Remembers the caller's listeners for the next session object, because the SDK forgets them when the connection
   * ends.
   */
  #keepListeners(session: CopilotSession): void {
    // A program may keep an earlier session object and call its `on`. That call, too, has to add the listener to the
    // newest object.
    this.#listen = session.on.bind(session);
    const listeners = this.#listeners;
    session.on = (first: string | SessionEventHandler, handler?: SessionEventHandler) => {
      const onType = (event: SessionEvent) => {
        if (event.type === first) handler?.(event);
      };
      const listener = typeof first === "string" ? onType : first;
      const each = { listener, stop: this.#listen(listener) };
      listeners.add(each);
      return () => {
        listeners.delete(each);
        each.stop();
      };
    };
  }

  /** Records that this process uses an ephemeral session, so that gc deletes it when this process dies. */
  async claim(): Promise<void> {
    await this.#setUser(ownUse(this.context.directory));
  }

  /** Takes one turn by calling `take`, and leaves the session. */
  async once(take: () => Promise<TurnReply>): Promise<Used> {
    let reply: TurnReply;
    try {
      await this.claim();
      reply = await take();
    } catch (error) {
      await this.close();
      throw error;
    }
    return { reply, session: await this.#leaveAnswered() };
  }

  /**
   * Leaves the session after an answered turn. If the store or the other host fails, only warns, because the caller
   * must get the reply.
   */
  async #leaveAnswered(): Promise<SessionView> {
    try {
      return await this.leave({ isAnswered: true });
    } catch (error) {
      if (!isStoreTrouble(error) && !isFleetError(error, "FLEET_HOST_AWAY")) throw error;
      this.context.warn(unseen(this.record.id, error.message));
      return this.viewUnseen();
    }
  }

  /** Leaves the session as {@link close} does. Resolves with its view afterwards. */
  async leave(options: { park?: boolean; isAnswered?: boolean } = {}): Promise<SessionView> {
    const { park = false, isAnswered = false } = options;
    if (this.#isKept(park)) {
      await this.close({ park });
      // Nobody uses a parked session. So gc deletes it after its TTL, and not when this process ends.
      await this.#setUser(null);
      return await this.view(isAnswered);
    }
    let before: SessionView;
    try {
      before = await this.view(isAnswered);
    } finally {
      await this.close();
    }
    return { ...before, state: "gone", sizeBytes: 0 };
  }

  /** Leaves the session. Deletes an ephemeral session, unless `park` keeps it for its next use. */
  async close({ park = false }: { park?: boolean } = {}): Promise<void> {
    await this.disconnect();
    if (!this.#isKept(park)) await this.delete();
  }

  protected async disconnect(): Promise<void> {
    const { session, closed } = this.#attached;
    using limit = deadline(GOODBYE_MS);
    // Limit the wait, because the other side may hang. The server releases the session when the connection ends.
    await abortable(Promise.race([session.disconnect(), closed]), limit.signal).catch(() => null);
  }

  #isKept(park: boolean): boolean {
    return park || this.record.persistence === "persistent";
  }

  async #setUser(user: SessionUser | null): Promise<void> {
    if (this.record.persistence === "persistent") return;
    await this.context.store.sessions.update(this.record.id, (draft) => {
      draft.usedBy = user;
    });
  }
}

/** The asker for a session that is being opened. Null if nobody answers the agent's requests. */
export function askerOf({ requests }: SessionsContext, id: string, { interactive, user }: AskerOptions): Asker | null {
  return interactive === true ? new Asker(requests, id, user) : null;
}

/** The identity of this process, for `usedBy` in the record of an ephemeral session. */
export function ownUse({ own }: HostDirectory): SessionUser {
  return own === null ? ownIdentity() : { ...ownIdentity(), at: own };
}

/**
 * Returns the handler for a session's permission requests. It calls the caller's own handler if `session.approve`
 * permits this, and always for the caller's own tools, because those run in the caller's process.
 *
 * @param decides whether this client refuses requests now. Otherwise it leaves them to the session's other clients.
 */
export function permissions(
  { session: { approve } }: Pick<Config, "session">,
  own: boolean,
  { onPermissionRequest: asked, tools = [] }: Pick<SessionOptions, "onPermissionRequest" | "tools"> = {},
  decides = (): boolean => true,
): PermissionHandler {
  if (approve === "all") return asked ?? (() => ({ kind: "approve-once" }));
  const names = new Set(tools.map(({ name }) => name));
  return (request, invocation) => {
    const isOwnTool = request.kind === "custom-tool" && names.has(request.toolName);
    if (asked !== undefined && (isOwnTool || (own && approve === "ask"))) return asked(request, invocation);
    if (approve === "ask" && !decides()) return { kind: "no-result" };
    return { kind: "reject", feedback: `Tools are not allowed here (session.approve is "${approve}").` };
  };
}

/**
 * The calls of `session.permissions` that take back all approvals that last longer than one tool call: the mode, rules
 * from the host, and rules of the session and its folder. None of them takes back all three (measured with 1.0.85).
 */
const FORGET = {
  setMode: { mode: "manual" },
  configure: { approveAllToolPermissionRequests: false, rules: { approved: [], denied: [] } },
  resetSessionApprovals: {},
} as const;

/**
 * Makes the runtime ask again about each tool call of the next turn, if `session.approve` is `ask`. An approved command
 * can learn the token of its own server, connect to it, and approve everything that follows.
 *
 * @param call calls a method of `session.permissions`
 */
export async function forgetApprovals(
  { session: { approve } }: Pick<Config, "session">,
  call: (name: keyof typeof FORGET | "setAllowAll", params: object) => Promise<unknown>,
): Promise<void> {
  if (approve !== "ask") return;
  const names = Object.keys(FORGET) as (keyof typeof FORGET)[];
  const calls = names.map(async (name) => {
    await call(name, FORGET[name]).catch(async (error: unknown) => {
      // Older runtimes have another method for the mode (measured with 1.0.81-0).
      if (name !== "setMode" || !/Unhandled method/.test(String(error))) throw error;
      await call("setAllowAll", { enabled: false });
    });
  });
  await Promise.all(calls);
}
