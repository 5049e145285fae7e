import type { SessionEvent } from "@github/copilot-sdk";

interface Sum {
  requests: number;
  input: number;
  output: number;
  cached: number;
}

/** Counts the model requests and tokens of this chat's turns, as the model service reported them. */
export class ChatUsage {
  readonly #models = new Map<string, Sum>();

  push(event: SessionEvent): void {
    if (event.type !== "assistant.usage") return;
    const { model, inputTokens = 0, outputTokens = 0, cacheReadTokens = 0 } = event.data;
    const { requests, input, output, cached } = this.#models.get(model) ?? {
      requests: 0,
      input: 0,
      output: 0,
      cached: 0,
    };
    this.#models.set(model, {
      requests: requests + 1,
      input: input + inputTokens,
      output: output + outputTokens,
      cached: cached + cacheReadTokens,
    });
  }

  /** One row for each model. */
  rows(): string[] {
    if (this.#models.size === 0) return ["Nothing yet."];
    return [...this.#models].map(([model, { requests, input, output, cached }]) => {
      const calls = requests === 1 ? "1 request" : `${requests} requests`;
      return `${model}: ${calls}, ${input} input tokens (${cached} of them from the cache), ${output} output tokens`;
    });
  }
}
