import { randomUUID } from "node:crypto";
import type { IncomingMessage, ServerResponse } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { isObject, parseObject } from "../base/values/text.js";
import { type LoopbackServer, listenOnLoopback } from "./loopback.js";

const LARGEST_BODY_BYTES = 32 * 1024 * 1024;

export interface EchoModelOptions {
  port?: number;
  /** How long each turn takes, in milliseconds, for tests that need a turn in flight. Default: 0. */
  delayMs?: number;
}

export interface EchoModel extends LoopbackServer, AsyncDisposable {
  /** The `baseUrl` for a provider: `http://127.0.0.1:PORT/v1`. */
  readonly baseUrl: string;
  readonly requests: number;
}

/**
 * Starts a model that needs no network: an OpenAI-compatible server on loopback. It answers `[turn N] TEXT`: TEXT is
 * the user's last message, and N the number of the user's messages. So each reply shows whether the whole history
 * arrived.
 *
 * These prompts are directives:
 * - `!delay MS TEXT` is answered with `[turn N] TEXT` after MS milliseconds (at most 10 minutes).
 * - `!tool NAME {ARGUMENTS}` calls a tool, and is then answered with its result.
 * - `!fail TEXT` is refused with status 400 and TEXT. The runtime does not retry this, so the turn fails at once.
 */
export async function startEchoModel(options: EchoModelOptions = {}): Promise<EchoModel> {
  let requests = 0;
  const server = await listenOnLoopback((request, response) => {
    const path = (request.url ?? "").split("?")[0];
    if (path !== "/v1/chat/completions" || request.method !== "POST") return answerOther(path, request, response);
    const gone = new AbortController();
    response.once("close", () => gone.abort());
    requests++;
    complete(request, response, options.delayMs ?? 0, gone.signal).catch((error: unknown) => {
      if (!gone.signal.aborted) refuse(response, 500, String(error));
    });
  }, options.port);
  return {
    ...server,
    baseUrl: `http://127.0.0.1:${server.port}/v1`,
    get requests() {
      return requests;
    },
    [Symbol.asyncDispose]: server.close,
  };
}

/** @param signal aborts when the client disconnects */
async function complete(
  request: IncomingMessage,
  response: ServerResponse,
  usualDelayMs: number,
  signal: AbortSignal,
): Promise<void> {
  const body = await readBody(request);
  if (body === null) {
    response.setHeader("connection", "close");
    return refuse(response, 413, `The body is too large. Allowed: at most ${LARGEST_BODY_BYTES} bytes`);
  }
  const turn = readTurn(body);
  if (typeof turn === "string") return refuse(response, 400, turn);
  if (turn.failure !== null) return refuse(response, 400, turn.failure);
  const delayMs = turn.delayMs ?? usualDelayMs;
  if (turn.stream) return stream(response, turn, delayMs, signal);
  if (delayMs > 0) await sleep(delayMs, undefined, { signal });
  send(response, 200, completion(turn));
}

async function stream(response: ServerResponse, turn: EchoTurn, delayMs: number, signal: AbortSignal): Promise<void> {
  response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-cache" });
  const chunks = completionChunks(turn);
  if (delayMs > 0) {
    // Send the headers first, so that the client sees at once that its request was accepted.
    response.flushHeaders();
    for (const chunk of chunks) {
      await sleep(delayMs / chunks.length, undefined, { signal });
      response.write(chunk);
    }
  } else {
    for (const chunk of chunks) response.write(chunk);
  }
  response.end();
}

function answerOther(path: string | undefined, request: IncomingMessage, response: ServerResponse): void {
  request.resume();
  if (path === "/v1/models" && request.method === "GET") {
    const model = { id: "echo", object: "model", created: 0, owned_by: "copilotfleet" };
    send(response, 200, { object: "list", data: [model] });
  } else {
    const known = path === "/v1/models" || path === "/v1/chat/completions";
    refuse(response, known ? 405 : 404, "The echo model answers POST /v1/chat/completions and GET /v1/models");
  }
}

async function readBody(request: IncomingMessage): Promise<string | null> {
  if (Number(request.headers["content-length"] ?? 0) > LARGEST_BODY_BYTES) return null;
  const chunks: Buffer[] = [];
  let bytes = 0;
  // Without this option, leaving the loop early would close the connection before the refusal is sent.
  for await (const chunk of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > LARGEST_BODY_BYTES) return null;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

function send(response: ServerResponse, status: number, body: unknown): void {
  const text = JSON.stringify(body);
  response.writeHead(status, { "content-type": "application/json", "content-length": Buffer.byteLength(text) });
  response.end(text);
}

function refuse(response: ServerResponse, status: number, message: string): void {
  if (response.headersSent) response.destroy();
  else send(response, status, { error: { message, type: "invalid_request_error", code: null, param: null } });
}

/** A request to the echo model, parsed, with its answer. */
export interface EchoTurn {
  model: string;
  /** The whole answer, such as `[turn 2] again`. Empty if the answer calls a tool. */
  reply: string;
  /** The tool call that a `!tool` directive asks for; null without a directive, and once the tool has run. */
  toolCall: ToolCall | null;
  /** The duration from a `!delay` directive, in milliseconds; null without one. */
  delayMs: number | null;
  /** The message from a `!fail` directive; null without one. */
  failure: string | null;
  stream: boolean;
  streamUsage: boolean;
  promptTokens: number;
}

interface ToolCall {
  name: string;
  /** A JSON object. */
  arguments: string;
}

const LONGEST_DELAY_MS = 10 * 60 * 1000;

/** Reads the body of a request. For a body that cannot be used, returns a sentence with the reason. */
export function readTurn(body: string): EchoTurn | string {
  const request = parseObject(body);
  if (request === undefined) return "The body is not a JSON object";
  if (!Array.isArray(request.messages)) return "messages is not a list";
  const said = request.messages.filter(isUserMessage).map(({ content }) => stripWrappers(textOf(content)));
  const last = said.at(-1);
  if (last === undefined) return "messages has nothing from the user";
  const delay = /^!delay (\d{1,9})(?:\s+|$)/.exec(last);
  const fail = /^!fail(?:\s+|$)/.exec(last);
  const call = toolCallIn(last);
  const message: unknown = request.messages.at(-1);
  const result = call !== null && isObject(message) && message.role === "tool" ? textOf(message.content) : null;
  const toolCall = result === null ? call : null;
  const text = result ?? (delay === null ? last : last.slice(delay[0].length));
  const options = isObject(request.stream_options) ? request.stream_options : {};
  return {
    model: typeof request.model === "string" ? request.model : "echo",
    reply: toolCall === null ? `[turn ${said.length}] ${text}` : "",
    toolCall,
    delayMs: delay === null ? null : Math.min(Number(delay[1]), LONGEST_DELAY_MS),
    failure: fail === null ? null : last.slice(fail[0].length) || "The prompt asked to fail",
    stream: request.stream === true,
    streamUsage: options.include_usage === true,
    promptTokens: countTokens(body),
  };
}

/** The tool call that a `!tool NAME {ARGUMENTS}` directive asks for; null if the text is not such a directive. */
function toolCallIn(text: string): ToolCall | null {
  const [, name, given = ""] = /^!tool ([\w-]+) (\{[\s\S]*\})\s*$/.exec(text) ?? [];
  return name === undefined || parseObject(given) === undefined ? null : { name, arguments: given };
}

/** Estimates one token for every four characters. The counts need not be exact, but they have to add up. */
function countTokens(text: string): number {
  return Math.ceil(text.length / 4);
}

/** The elements that the runtime puts before and after the user's text (seen with 1.0.102). */
const WRAPPER =
  "<(current_datetime|system_reminder|reminder|system_notification|tagged_files|environment_context|session_context|context_window_reminder|ide_selection)>[\\s\\S]*?</\\1>";
const LEADING = new RegExp(`^\\s*${WRAPPER}\\s*`);
const TRAILING = new RegExp(`\\s*${WRAPPER}\\s*$`);

export function stripWrappers(text: string): string {
  let rest = text;
  for (let before = ""; before !== rest; ) {
    before = rest;
    rest = rest.replace(LEADING, "").replace(TRAILING, "");
  }
  return rest;
}

function isUserMessage(message: unknown): message is { content: unknown } {
  return isObject(message) && message.role === "user" && "content" in message;
}

/** The content of a message if it is a string, or else the text of its parts. */
function textOf(content: unknown): string {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return "";
  const texts = content.map((part: unknown) => (isObject(part) && typeof part.text === "string" ? part.text : ""));
  return texts.filter((text) => text !== "").join("\n");
}

/** The answer in OpenAI's wire format: https://platform.openai.com/docs/api-reference/chat. */
export function completion(turn: EchoTurn): unknown {
  const { toolCall, reply } = turn;
  const message = { role: "assistant", content: toolCall === null ? reply : null, refusal: null, ...calls(toolCall) };
  return {
    ...head(turn, "chat.completion"),
    choices: [{ index: 0, message, logprobs: null, finish_reason: finishOf(turn) }],
    usage: usage(turn),
  };
}

/**
 * The server-sent events of a streamed answer: one for each word or for the tool call, then the finish reason, the
 * usage if requested, and `[DONE]`.
 */
export function completionChunks(turn: EchoTurn): string[] {
  const base = head(turn, "chat.completion.chunk");
  const delta = (content: object, finish: string | null) =>
    event({ ...base, choices: [{ index: 0, delta: content, logprobs: null, finish_reason: finish }] });
  const words = turn.reply.match(/\s*\S+|\s+/g) ?? [];
  const chunks = words.map((content, at) => delta(at === 0 ? { role: "assistant", content } : { content }, null));
  if (turn.toolCall !== null) chunks.push(delta({ role: "assistant", content: null, ...calls(turn.toolCall) }, null));
  chunks.push(delta({}, finishOf(turn)));
  if (turn.streamUsage) chunks.push(event({ ...base, choices: [], usage: usage(turn) }));
  chunks.push("data: [DONE]\n\n");
  return chunks;
}

function calls(call: ToolCall | null): object {
  if (call === null) return {};
  return { tool_calls: [{ index: 0, id: `call-${randomUUID()}`, type: "function", function: call }] };
}

function finishOf({ toolCall }: EchoTurn): string {
  return toolCall === null ? "stop" : "tool_calls";
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
