import { countTokens, type EchoTurn } from "./echo-turn.js";

/* OpenAI's wire format for an answer: https://platform.openai.com/docs/api-reference/chat. */

export function completion(turn: EchoTurn): unknown {
  const message = { role: "assistant", content: turn.reply, refusal: null };
  return {
    ...head(turn, "chat.completion"),
    choices: [{ index: 0, message, logprobs: null, finish_reason: "stop" }],
    usage: usage(turn),
  };
}

/** The server-sent events of a streamed answer: one for each word, the finish reason, the usage if requested, `[DONE]`. */
export function completionChunks(turn: EchoTurn): string[] {
  const base = head(turn, "chat.completion.chunk");
  const delta = (content: object, finish: "stop" | null) =>
    event({ ...base, choices: [{ index: 0, delta: content, logprobs: null, finish_reason: finish }] });
  const words = turn.reply.match(/\s*\S+|\s+/g) ?? [];
  const chunks = words.map((content, at) => delta(at === 0 ? { role: "assistant", content } : { content }, null));
  chunks.push(delta({}, "stop"));
  if (turn.streamUsage) chunks.push(event({ ...base, choices: [], usage: usage(turn) }));
  chunks.push("data: [DONE]\n\n");
  return chunks;
}

function event(data: unknown): string {
  return `data: ${JSON.stringify(data)}\n\n`;
}

function head(turn: EchoTurn, object: string) {
  return { id: "chatcmpl-echo", object, created: Math.floor(Date.now() / 1000), model: turn.model };
}

function usage({ promptTokens, reply }: EchoTurn) {
  const completionTokens = countTokens(reply);
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: promptTokens + completionTokens,
  };
}
