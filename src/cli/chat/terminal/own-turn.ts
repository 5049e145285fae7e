/**
 * A turn of this chat. The server asks all clients of a session its questions, and each client answers only those of its own
 * turns. The turn of another client may still run while this chat's prompt waits.
 */
export class OwnTurn {
  readonly #cancelled = new AbortController();
  /** How many tool calls with each id have ended. A model may give later calls the same id. */
  readonly #endedCalls = new Map<string, number>();
  #state: "waits" | "runs" | "is over" = "waits";
  #decide: (isOwn: boolean) => void = () => undefined;
  /** Resolves when it is known whether the questions that arrive before the turn begins belong to it. */
  readonly #early = new Promise<boolean>((resolve) => {
    this.#decide = resolve;
  });

  /** Aborts when the user cancels the turn. */
  get signal(): AbortSignal {
    return this.#cancelled.signal;
  }

  /** Whether the user can still answer questions of the turn. */
  get takesAnswers(): boolean {
    return this.#state === "runs" && !this.signal.aborted;
  }

  cancel(reason: Error): void {
    this.#cancelled.abort(reason);
  }

  /** The server has begun the prompt. Questions that arrived earlier belong to another turn. */
  begin(): void {
    this.#run(false);
  }

  /** The turn has begun while the chat had no connection. Questions may have arrived before the chat knew this. */
  find(): void {
    this.#run(true);
  }

  end(): void {
    this.#state = "is over";
    this.#decide(false);
  }

  endCall(id: string): void {
    this.#endedCalls.set(id, this.endedCalls(id) + 1);
  }

  /** How many tool calls with this id have ended in this turn. */
  endedCalls(id: string): number {
    return this.#endedCalls.get(id) ?? 0;
  }

  /** Resolves with true if a question that arrives now belongs to this turn. */
  async asks(): Promise<boolean> {
    return this.#state === "runs" || (await this.#early);
  }

  #run(hasEarly: boolean): void {
    if (this.#state !== "waits") return;
    this.#state = "runs";
    this.#decide(hasEarly);
  }
}
