import type { SessionEvent } from "../fleet.js";

export interface TurnUsage {
  requests: number;
  inputTokens: number;
  outputTokens: number;
  cacheReadTokens: number;
  /** Null if nothing reported it. */
  credits: number | null;
}

/** Notes the id of a turn, and what the turn used as the model's service reported it. */
export class TurnWatch {
  /** Empty until the turn has begun. */
  turn = "";
  readonly usage: TurnUsage = { requests: 0, inputTokens: 0, outputTokens: 0, cacheReadTokens: 0, credits: null };

  push(event: SessionEvent): void {
    if (event.type === "user.message" && this.turn === "") this.turn = event.data.messageId ?? event.id;
    if (event.type !== "assistant.usage") return;
    const { inputTokens = 0, outputTokens = 0, cacheReadTokens = 0 } = event.data;
    this.usage.requests++;
    this.usage.inputTokens += inputTokens;
    this.usage.outputTokens += outputTokens;
    this.usage.cacheReadTokens += cacheReadTokens;
  }
}
