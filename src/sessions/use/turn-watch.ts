import type { SessionEvent } from "@github/copilot-sdk";
import type { TurnUsage } from "../../model/session.js";

/** Notes the id of a turn, and its usage as the model's service reported it. */
export class TurnWatch {
  /** Null until the turn has begun. */
  turn: string | null = null;
  readonly usage: TurnUsage = { requests: 0, inputTokens: 0, outputTokens: 0, cacheReadTokens: 0, credits: null };

  push(event: SessionEvent): void {
    if (event.type === "user.message") this.turn ??= event.data.messageId ?? event.id;
    if (event.type !== "assistant.usage") return;
    const { inputTokens = 0, outputTokens = 0, cacheReadTokens = 0 } = event.data;
    this.usage.requests++;
    this.usage.inputTokens += inputTokens;
    this.usage.outputTokens += outputTokens;
    this.usage.cacheReadTokens += cacheReadTokens;
  }
}
