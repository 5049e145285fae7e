import type { SessionEvent } from "@github/copilot-sdk";
import type { TurnUsage } from "../../model/session.js";
import { creditsIn } from "../../model/usage/credits.js";
import type { TurnReply } from "../../runtime/client/turn.js";

/**
 * The reply of a turn that has begun. It is a promise of the whole reply, and an async iterable of its pieces.
 *
 * ```ts
 * for await (const piece of fleet.sessions.send(session, "Hello")) show(piece);
 * ```
 *
 * A loop gets the whole reply, even if the loop begins late. Each piece contains everything that arrived since the
 * piece before. If the turn fails, the loop throws the turn's error. Leaving the loop does not end the turn. To end it,
 * abort `signal`.
 */
export class PendingReply<T extends TurnReply> extends Promise<T> implements AsyncIterable<string> {
  static override get [Symbol.species](): PromiseConstructor {
    return Promise;
  }

  readonly #pieces: Pieces;

  /** @param take begins the turn, and calls its argument with each piece of the reply */
  constructor(take: (onDelta: (text: string) => void) => Promise<T>) {
    const pieces = new Pieces();
    super((resolve) => resolve(take((text) => pieces.add(text)).finally(() => pieces.end())));
    this.#pieces = pieces;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, undefined> {
    // Mark the rejection as handled. `await this` below throws it to the loop.
    this.catch(() => undefined);
    yield* this.#pieces.read();
    const { text } = await this;
    if (this.#pieces.isEmpty && text !== "") yield text;
  }
}

/** The text that has arrived so far. Any number of readers can read it, each at its own pace. */
class Pieces {
  #text = "";
  #ended = false;
  #waiting: (() => void)[] = [];

  get isEmpty(): boolean {
    return this.#text === "";
  }

  add(text: string): void {
    this.#text += text;
    this.#wake();
  }

  end(): void {
    this.#ended = true;
    this.#wake();
  }

  async *read(): AsyncGenerator<string, void, undefined> {
    let at = 0;
    for (;;) {
      if (at < this.#text.length) {
        const piece = this.#text.slice(at);
        at = this.#text.length;
        yield piece;
      } else if (this.#ended) return;
      else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
  }

  #wake(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) resolve();
  }
}

/** Collects the id of a turn, and the turn's usage as the model service reports it. */
export class TurnWatch {
  /** Null until the turn has begun. */
  turn: string | null = null;
  readonly usage: TurnUsage = { requests: 0, inputTokens: 0, outputTokens: 0, cacheReadTokens: 0, credits: null };

  push(event: SessionEvent): void {
    if (event.type === "user.message") this.turn ??= event.data.messageId ?? event.id;
    if (event.type !== "assistant.usage") return;
    const { inputTokens = 0, outputTokens = 0, cacheReadTokens = 0, copilotUsage } = event.data;
    const credits = creditsIn(copilotUsage?.totalNanoAiu);
    this.usage.requests++;
    this.usage.inputTokens += inputTokens;
    this.usage.outputTokens += outputTokens;
    this.usage.cacheReadTokens += cacheReadTokens;
    if (credits !== null) this.usage.credits = (this.usage.credits ?? 0) + credits;
  }
}
