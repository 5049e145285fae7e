/**
 * A turn of this chat. The server sends the agent's questions to all clients of the session, and each client answers
 * only those of its own turns. While this chat's prompt waits, the turn of another client may still run.
 */
export class OwnTurn {
  readonly #cancelled = new AbortController();
  /** How many tool calls with each id have ended. A model may give later calls the same id. */
  readonly #endedCalls = new Map<string, number>();
  #state: "waits" | "runs" | "is over" = "waits";
  #decide: (isOwn: boolean) => void = () => undefined;
  /** Whether questions that arrived before `begin` or `find` belong to this turn. Settles when it begins or ends. */
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

  /** Call this when the server has begun the turn. Questions that arrived earlier belong to another turn. */
  begin(): void {
    this.#run(false);
  }

  /** Call this if the turn began while the connection was lost. Questions that arrived earlier belong to this turn. */
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

  /** Whether a question that arrives now belongs to this turn. Before the turn, waits until the turn begins or ends. */
  async asks(): Promise<boolean> {
    return this.#state === "runs" || (await this.#early);
  }

  #run(hasEarly: boolean): void {
    if (this.#state !== "waits") return;
    this.#state = "runs";
    this.#decide(hasEarly);
  }
}
