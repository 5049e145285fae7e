import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { completion, completionChunks, type EchoTurn, readTurn } from "./echo-turn.js";

const LARGEST_BODY_BYTES = 32 * 1024 * 1024;

/**
 * How long an unused connection stays open, in milliseconds. It is longer than usual pauses between turns, because a
 * request fails if it arrives just when its connection is being closed.
 */
const KEEP_ALIVE_MS = 10 * 60 * 1000;

export interface EchoModelOptions {
  port?: number;
  /** How long each turn takes, in milliseconds, for tests that need a turn in flight. Default: 0. */
  delayMs?: number;
}

export interface EchoModel extends AsyncDisposable {
  /** The `baseUrl` for a provider: `http://127.0.0.1:PORT/v1`. */
  readonly baseUrl: string;
  readonly requests: number;
  /** Serves a connection that another listener has accepted, such as a Unix socket. */
  accept(connection: Socket): void;
  /** Stops listening and closes all connections. May be called twice. */
  close(): Promise<void>;
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
  // Set `noDelay`, because Nagle's algorithm would delay the small replies.
  const server = createServer({ noDelay: true, keepAliveTimeout: KEEP_ALIVE_MS }, (request, response) => {
    const path = (request.url ?? "").split("?")[0];
    if (path !== "/v1/chat/completions" || request.method !== "POST") return answerOther(path, request, response);
    const gone = new AbortController();
    response.once("close", () => gone.abort());
    requests++;
    complete(request, response, options.delayMs ?? 0, gone.signal).catch((error: unknown) => {
      if (!gone.signal.aborted) refuse(response, 500, String(error));
    });
  });
  server.listen(options.port ?? 0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  const close = async () => {
    if (!server.listening) return;
    const closed = once(server, "close");
    server.close();
    server.closeAllConnections();
    await closed;
  };
  return {
    baseUrl: `http://127.0.0.1:${port}/v1`,
    get requests() {
      return requests;
    },
    accept: (connection) => void server.emit("connection", connection),
    close,
    [Symbol.asyncDispose]: close,
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
