import { FleetError } from "../errors.js";
import type { HeldLease } from "../sessions/leases.js";
import { takeTurn } from "../sessions/turn-taking.js";
import type { ServerRecord, SessionRecord } from "../store/store.js";
import { type Attachment, saysUnloaded } from "./attachments.js";
import type { ClientRequest } from "./client-message.js";
import type { DoorContext, DoorEvent } from "./context.js";
import type { Exchange } from "./exchange.js";
import type { Link } from "./links.js";
import { checkReach } from "./reach.js";
import { Turn } from "./turn.js";

export interface TurnsContext extends DoorContext {
  user: string;
  exchange: Exchange;
  attachment: (sessionId: string) => Attachment | undefined;
  /** The session's server, with the session loaded for this client if the client opened it. */
  linkFor: (record: SessionRecord) => Promise<Link>;
  /** The session is not in its server's memory any more. */
  unloaded: (sessionId: string) => void;
  onEvent: (event: Omit<DoorEvent, "address" | "user">) => void;
  /** Tells the client that its turn was cut. */
  cut: (sessionId: string, message: string) => void;
}

interface Running {
  readonly turn: Turn;
  readonly record: SessionRecord;
  /** Prompts that came before the turn was theirs, in order. */
  readonly waiting: ClientRequest[];
  readonly abort: AbortController;
  readonly over: Promise<void>;
}

/** The turns of one client: one at a time in each session, whoever else uses it, by the rules of `turn-taking.ts`. */
export class Turns {
  readonly #context: TurnsContext;
  readonly #running = new Map<string, Running>();

  constructor(context: TurnsContext) {
    this.#context = context;
  }

  /** The turn of a session that this client is in, or waits for. */
  of(sessionId: string): Turn | undefined {
    return this.#running.get(sessionId)?.turn;
  }

  /** Resolves when no turn of this client is under way. */
  async settled(): Promise<void> {
    while (this.#running.size > 0) await Promise.all([...this.#running.values()].map(({ over }) => over));
  }

  /** How many turns are under way or waited for. */
  get size(): number {
    return this.#running.size;
  }

  /** A prompt. Resolves when it was sent, refused, or has to wait. */
  async send(request: ClientRequest, record: SessionRecord): Promise<void> {
    const running = this.#running.get(record.id);
    if (running?.turn.over === null) {
      if (running.turn.active) await this.#forward(running, request);
      else running.waiting.push(request);
      return;
    }
    this.#begin(request, record);
  }

  /** Gives up prompts that wait for their turn. @returns false when none does. */
  cancel(sessionId: string): boolean {
    const running = this.#running.get(sessionId);
    if (running === undefined || running.turn.active || running.turn.over !== null) return false;
    running.abort.abort(new FleetError("FLEET_TURN_FAILED", "The prompt was cancelled while it waited for its turn."));
    return true;
  }

  close(): void {
    const gone = new FleetError("FLEET_TURN_FAILED", "The client has gone.");
    for (const { turn, abort } of this.#running.values()) {
      turn.end("closed");
      abort.abort(gone);
    }
  }

  #begin(request: ClientRequest, record: SessionRecord): void {
    const base = { turn: new Turn(), record, waiting: [request], abort: new AbortController() };
    const running: Running = { ...base, over: this.#run(base) };
    this.#running.set(record.id, running);
    void running.over.then(() => {
      if (this.#running.get(record.id) === running) this.#running.delete(record.id);
    });
  }

  /** Never rejects: what goes wrong is told to those who wait. */
  async #run(running: Omit<Running, "over">): Promise<void> {
    const { sessions, user, config, linkFor, exchange, onEvent } = this.#context;
    const { turn, record, waiting, abort } = running;
    const waitMs = config.serve.turnWaitMs;
    const { signal } = abort;
    const place = {
      sessionId: record.id,
      permit: async ({ always }: { always: boolean }) =>
        await sessions.permit(record, { waitMs, signal }, { always, user }),
      server: async () => {
        const { server } = await linkFor(record);
        turn.marked = server;
        return server;
      },
      admitted: async (server: ServerRecord) => await sessions.admitted(server),
      waitMs,
      signal,
    };
    try {
      await takeTurn(place, async (lease) => await this.#hold(running, lease));
    } catch (error) {
      // The lease may have been lost after all was answered: then nobody waits, and the log has it.
      if (waiting.length === 0) onEvent({ event: "failed", sessionId: record.id, detail: String(error) });
      for (const request of waiting.splice(0)) exchange.refuse(request, error);
      turn.end("refused");
    }
    // A turn that was cut may have left nothing on the disk, and what counts as a turn must have.
    if (!turn.accepted || turn.over !== "idle") return;
    await sessions.used(record.id).catch((error: unknown) => {
      onEvent({ event: "failed", sessionId: record.id, detail: `The turn could not be recorded: ${String(error)}` });
    });
  }

  async #hold(running: Omit<Running, "over">, lease: HeldLease | undefined): Promise<void> {
    const { turn, record, waiting, abort } = running;
    abort.signal.throwIfAborted();
    const onLost = () => void this.#abandon(record, lease?.signal.reason);
    lease?.signal.addEventListener("abort", onLost, { once: true });
    try {
      turn.start(lease);
      for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) await this.#forward(running, next);
      await turn.ended(async () => await this.#isIdle(record), this.#context.attachment(record.id) === undefined);
    } finally {
      lease?.signal.removeEventListener("abort", onLost);
    }
  }

  async #forward(running: Omit<Running, "over">, request: ClientRequest, again = false): Promise<void> {
    const { exchange, linkFor, attachment, unloaded, config } = this.#context;
    const { turn, record } = running;
    const { id } = record;
    if (!again) turn.sent();
    try {
      const link = await linkFor(record);
      if (!link.own) checkReach(request.method, request.params, config);
      // The late holder's prompt is refused here: behind this line only the write to the socket is left.
      await turn.lease?.check();
      exchange.forward(link, request, {
        params: { ...request.params, sessionId: id },
        onAnswer: ({ failed, body }) => {
          if (failed && !again && attachment(id) !== undefined && saysUnloaded(body)) {
            unloaded(id);
            void this.#forward(running, request, true);
            return "hold";
          }
          turn.answered(!failed);
          return undefined;
        },
        onLost: () => turn.end("lost"),
      });
    } catch (error) {
      turn.answered(false);
      exchange.refuse(request, error);
    }
  }

  async #isIdle(record: SessionRecord): Promise<boolean> {
    const { linkFor } = this.#context;
    try {
      const { upstream } = await linkFor(record);
      const activity = await upstream.request("session.metadata.activity", { sessionId: record.id });
      return (activity as { hasActiveWork?: unknown }).hasActiveWork !== true;
    } catch {
      return true; // not loaded, or its server has gone: in no turn
    }
  }

  /** A turn whose lease is lost is ended: the next holder's must not run into it. */
  async #abandon(record: SessionRecord, reason: unknown): Promise<void> {
    const { linkFor, cut, onEvent } = this.#context;
    cut(record.id, reason instanceof Error ? reason.message : String(reason));
    try {
      await (await linkFor(record)).upstream.request("session.abort", { sessionId: record.id });
    } catch (error) {
      onEvent({ event: "failed", sessionId: record.id, detail: `The turn could not be ended: ${String(error)}` });
    }
  }
}
