import { abortable, deadline } from "../../base/clock.js";
import { FleetError, isFleetError, option, quote } from "../../base/errors.js";
import { LONGEST_TIMER_MS } from "../../base/values/measures.js";
import { isObject } from "../../base/values/text.js";
import type { HostIdentity } from "../../identity/identity.js";
import { encodeMessage, ProtocolError } from "../../runtime/wire/frames.js";
import type { RpcId } from "../../runtime/wire/scan.js";
import type { Protocol } from "../policy/methods.js";
import type { DoorContext } from "../state/door-state.js";
import { failure, type Reporter } from "../state/report.js";
import type { ClientMessage, ClientRequest, Params } from "../wire/client-message.js";
import type { ClientSocket } from "../wire/client-socket.js";
import { errorFrame, methodDenied, REFUSED } from "../wire/refusals.js";

/**
 * How many calls of one other host may be unanswered. A host makes one call at a time, so only a faulty host exceeds
 * this.
 */
const MAX_OPEN_CALLS = 100;

export interface HostCalls {
  /** Carries out a call for another host. @returns the result, which must be JSON */
  answer(method: string, params: Params, signal: AbortSignal): Promise<unknown>;
}

/**
 * A connection on which another host makes the calls of `hosts/calls/rpc-table.ts`, as
 * `fleet.call {method, params, limitMs}`. When the other host disconnects, its unfinished calls are aborted.
 */
export class ControlConnection {
  readonly #socket: ClientSocket;
  readonly #calls: HostCalls;
  readonly #report: Reporter;
  readonly #gone = new AbortController();
  readonly #open = new Set<Promise<void>>();

  constructor(socket: ClientSocket, calls: HostCalls, report: Reporter) {
    this.#socket = socket;
    this.#calls = calls;
    this.#report = report;
  }

  /**
   * Admits another host that has shown a good token, and deletes the token, so that nobody who intercepts it can use
   * it.
   *
   * @throws FleetError `FLEET_TOKEN_REFUSED` when the token is meant for another host's door, or was already used.
   */
  static async greet(
    { store, directory }: DoorContext,
    { tokenId, door }: HostIdentity,
    { version }: Protocol,
  ): Promise<Params> {
    const isMeant = directory.own !== null && door === directory.own;
    if (isMeant && (await store.tokens.delete(tokenId))) return { protocolVersion: version };
    throw new FleetError("FLEET_TOKEN_REFUSED", "A host's token is valid once, at one front door.");
  }

  take(message: ClientMessage): void {
    switch (message.kind) {
      case "request":
        if (this.#open.size >= MAX_OPEN_CALLS) {
          throw new ProtocolError(`The connection has more than ${MAX_OPEN_CALLS} unanswered calls.`, -32600);
        }
        this.#begin(message);
        break;
      case "unfit":
        this.#socket.send(errorFrame(message.id, message.rpcCode, message.message));
        break;
      case "response":
        this.#report.event({ event: "dropped", detail: "an answer to no open request" });
        break;
      case "notification":
        if (!message.method.startsWith("$/")) this.#report.event({ event: "dropped", detail: "a notification" });
        break;
    }
  }

  /** Resolves when the calls that are unanswered now have been answered. */
  async settled(): Promise<void> {
    await Promise.all(this.#open);
  }

  close(): void {
    this.#gone.abort(new Error("the other host has hung up"));
  }

  #begin(request: ClientRequest): void {
    const call = this.#call(request);
    this.#open.add(call);
    void call.then(() => this.#open.delete(call));
  }

  /** Never rejects. */
  async #call({ id, method, params }: ClientRequest): Promise<void> {
    try {
      if (method !== "fleet.call") throw methodDenied(method, 'another host may only send "fleet.call"');
      const call = readCall(params);
      using limit = deadline(call.limitMs, this.#gone.signal);
      const work = this.#calls.answer(call.method, call.params, limit.signal);
      const result = await abortable(work, limit.signal).catch((error: unknown) => {
        throw error === limit.signal.reason ? tooSlow(call, error) : error;
      });
      this.#socket.send(encodeMessage({ id, result: result ?? null }));
    } catch (error) {
      if (this.#gone.signal.aborted) return;
      this.#refuse(id, method, error);
    }
  }

  #refuse(id: RpcId, method: string, error: unknown): void {
    if (!isFleetError(error)) this.#report.event({ event: "failed", method, ...failure(error) });
    const unexpected = "The other host failed to handle the call. See its log.";
    const refusal = isFleetError(error) ? error : new FleetError("FLEET_INTERNAL", unexpected);
    const { code, retryAfterMs, limit } = refusal;
    // Leave the placeholders for option names in the texts. Programs and commands name options differently, and only
    // the other host knows which of them will show this error.
    const { message, suggestions } = refusal.describe(option);
    const data = { code, suggestions, retryAfterMs, limit };
    this.#socket.send(encodeMessage({ id, error: { code: REFUSED, message, data } }));
  }
}

interface Call {
  method: string;
  params: Params;
  limitMs: number;
}

/**
 * The error for a call that takes too long here. It has the same code as a call without an answer, because in both
 * cases the work may have been done.
 */
function tooSlow({ method, limitMs }: Call, cause: unknown): FleetError {
  return new FleetError("FLEET_HOST_AWAY", `The other host did not finish ${quote(method)} within ${limitMs} ms.`, {
    suggestions: ["copilotfleet top --once", "Try again in a moment."],
    cause,
  });
}

function readCall({ method, params = {}, limitMs }: Params): Call {
  const isLimit = typeof limitMs === "number" && limitMs > 0 && limitMs <= LONGEST_TIMER_MS;
  if (typeof method === "string" && isLimit && isObject(params)) return { method, params, limitMs };
  throw methodDenied("fleet.call", "it needs a method, an object of parameters and a limit in milliseconds");
}
