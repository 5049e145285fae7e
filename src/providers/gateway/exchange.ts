import type { ClientRequest, IncomingHttpHeaders, IncomingMessage, ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { pipeline } from "node:stream/promises";
import { isFleetError, quote, quoteUpTo, systemCode } from "../../base/errors.js";
import { asSentence, isObject, parseObject, redactTokens } from "../../base/values/text.js";
import type { RemoteProvider } from "../../config/schema.js";
import { nameOfSource } from "../../config/secret.js";
import { shownStatus } from "../../runtime/history/turn-tracker.js";
import { reachProblem } from "../../runtime/launch/launch.js";
import type { ProviderKey } from "../provider-key.js";
import type { GatewayOptions } from "./gateway.js";
import { type MeteredConsumer, modelIn, RequestMeter, TOKEN_BYTES } from "./request-meter.js";
import type { Upstream } from "./upstream.js";
import { BadBody, type BodyRule, type WireFormat } from "./wire.js";

/**
 * The largest request body, in bytes, that is kept so that the request can be sent again. Larger bodies pass through.
 */
const LARGEST_KEPT_BYTES = 1024 * 1024;
/** The largest body that is kept because the gateway may have to change or refuse it, in bytes. */
const LARGEST_CHANGED_BYTES = 32 * 1024 * 1024;
/** How many bytes of bodies are kept for one session at most. */
const MOST_KEPT_BYTES = 2 * LARGEST_CHANGED_BYTES;
/** How many tokens count for the answer of a request under way, because nobody knows its length. */
const ANSWER_TOKENS = 10_000;

/** The part of a session that its requests share. */
export interface GatewaySession {
  /** The session's connections to the model service. */
  readonly upstream: Upstream;
  /** How many bytes of bodies are kept for the session now. */
  keptBytes: number;
}

/**
 * Counts the model requests of a gateway. A request has failed if the service did not answer it completely, or answered
 * with 401 or 5xx.
 */
export interface ModelRequests {
  inFlight: number;
  failed: number;
}

interface ExchangeContext {
  wire: WireFormat;
  report: FailureReport;
  /** Null if the model service needs none. */
  key: ProviderKey | null;
  requests: ModelRequests;
  /** About how many tokens the requests under way use, by user. */
  underWay: Map<string, number>;
  silenceMs: number;
  metering: Exclude<GatewayOptions["metering"], undefined> | null;
}

/** Begins a request to the model service, on a connection of the session. */
type Begin = (headers: IncomingHttpHeaders) => ClientRequest;

/** One model request of a server, and its answer, which passes through as it arrives. */
export class Exchange {
  readonly #context: ExchangeContext;
  readonly #request: IncomingMessage;
  readonly #response: ServerResponse;
  #meter: RequestMeter | null = null;
  #keptBytes = 0;
  /** About how many tokens the request uses. They count for its user while it is under way. */
  #tokens = 0;
  /** The request to the model service. It is destroyed when the server disconnects. */
  #sent: ClientRequest | undefined;
  /** The key in that request. */
  #sentKey: string | null = null;

  constructor(context: ExchangeContext, request: IncomingMessage, response: ServerResponse) {
    this.#context = context;
    this.#request = request;
    this.#response = response;
    response.once("close", () => this.#sent?.destroy());
  }

  /**
   * Answers the request. Never rejects.
   *
   * @param session undefined if no session in use has the request's token
   * @param consumer the user for whom the request counts; undefined if it does not count
   */
  async run(session: GatewaySession | undefined, consumer: MeteredConsumer | undefined): Promise<void> {
    const { wire, requests, metering, report } = this.#context;
    const { method = "", url = "" } = this.#request;
    if (!isFramed(this.#request)) return this.#refuse(400, BADLY_FRAMED, "invalid_request_error", CLOSING);
    if (session === undefined)
      return this.#refuse(401, "This process uses no session with this token.", "authentication_error");
    const path = wire.pathFor(method, url);
    if (path === null)
      return this.#refuse(404, "The model gateway passes on only model requests.", "invalid_request_error");
    requests.inFlight += 1;
    try {
      if (metering !== null && wire.consumes(method, path)) {
        const refusal = await this.#refusal(consumer);
        if (refusal !== null) return this.#refuse(...refusal);
        if (consumer !== undefined) {
          this.#meter = new RequestMeter(metering.ledger, consumer);
          consumer.trouble ??= report.waiting;
        }
      }
      const body = await this.#body(session, this.#meter === null ? null : wire.ruleFor(path));
      const begin: Begin = (headers) => session.upstream.request(method, path, headers);
      if (!(await this.#pass(begin, body, consumer))) requests.failed += 1;
    } catch (error) {
      // If the server no longer waits for the answer, the request does not count as failed.
      if (this.#response.destroyed) return;
      requests.failed += 1;
      if (error instanceof TooLarge) this.#refuse(413, TOO_LARGE, "request_too_large", CLOSING);
      else if (error instanceof BadBody) this.#refuse(400, error.message, "invalid_request_error");
      else {
        const [status, message] = this.#describe(error);
        if (consumer !== undefined) consumer.trouble = message;
        this.#refuse(status, message, "api_error");
      }
    } finally {
      this.#meter?.end(this.#response.destroyed ? "cut" : "failed");
      session.keptBytes -= this.#keptBytes;
      if (consumer !== undefined) this.#count(consumer.user, -this.#tokens);
      requests.inFlight -= 1;
    }
  }

  /** The reason why the session may not consume tokens now; null if it may. */
  async #refusal(consumer: MeteredConsumer | undefined): Promise<Refusal | null> {
    const isTurn = consumer !== undefined && consumer.turns > 0;
    if (consumer === undefined || !(isTurn || consumer.isExpected))
      return [403, "The model gateway passes on model requests only during a turn of the session.", "permission_error"];
    const { user } = consumer;
    const bytes = Number(this.#request.headers["content-length"] ?? LARGEST_CHANGED_BYTES);
    this.#tokens = Math.ceil(bytes / TOKEN_BYTES) + ANSWER_TOKENS;
    const before = this.#count(user, this.#tokens);
    try {
      await this.#context.metering?.checkBudget?.(user, isTurn, before);
    } catch (error) {
      // The turn itself began within the budgets. So a store that does not answer does not cut it.
      if (isFleetError(error, "FLEET_LIMIT_REACHED"))
        return [429, error.message, "rate_limit_error", { "x-should-retry": "false" }];
      if (isFleetError(error, "FLEET_USER_SUSPENDED")) return [403, error.message, "permission_error"];
      if (!isTurn) return [503, error instanceof Error ? error.message : String(error), "api_error"];
    }
    return null;
  }

  /** Changes the tokens that count for the user's requests under way. @returns the tokens before */
  #count(user: string, tokens: number): number {
    const { underWay } = this.#context;
    const before = underWay.get(user) ?? 0;
    underWay.set(user, before + tokens);
    return before;
  }

  /** Passes the request and its answer on. @returns false if the request counts as failed in {@link ModelRequests} */
  async #pass(begin: Begin, body: Buffer | null, consumer: MeteredConsumer | undefined): Promise<boolean> {
    const answer = await this.#ask(begin, body);
    const { statusCode = 502, headers } = answer;
    this.#meter?.read(answer);
    if (consumer !== undefined) consumer.trouble = null;
    if (statusCode >= 400) {
      const message = await this.#report(answer, statusCode, body);
      if (consumer !== undefined) consumer.trouble = message;
      return statusCode !== 401 && statusCode < 500;
    }
    this.#response.writeHead(statusCode, this.#context.wire.headersBack(headers));
    // Send the headers at once, because the server waits for them, and the first piece may come much later.
    this.#response.flushHeaders();
    let isCut = false;
    answer.once("error", () => {
      isCut = !this.#request.socket.destroyed;
    });
    await pipeline(answer, this.#response).catch(() => this.#response.destroy());
    this.#meter?.end(this.#response.writableFinished ? "completed" : "cut");
    return !isCut;
  }

  /**
   * Passes the service's error on with another message. Keeps its other fields, because the runtime reads its code.
   *
   * @returns the message
   */
  async #report(answer: IncomingMessage, status: number, sent: Buffer | null): Promise<string> {
    const { wire, report } = this.#context;
    const body = await beginningOf(answer);
    const model = sent === null ? null : modelIn(sent);
    const message = report.answered({ status, body, model, key: this.#sentKey });
    const given = parseObject(body);
    const text = isObject(given?.error)
      ? JSON.stringify({ ...given, error: { ...given.error, message } })
      : wire.error(message, "api_error");
    this.#reply(status, text, wire.headersBack(answer.headers));
    return message;
  }

  /**
   * Reads the whole body if it is small enough to keep. Returns null if it has to pass through instead.
   *
   * @param rule the rule that the body has to follow, so that it has to be read whatever its size; null if there is
   * none
   */
  async #body(session: GatewaySession, rule: BodyRule | null): Promise<Buffer | null> {
    const bytes = Number(this.#request.headers["content-length"] ?? Number.NaN);
    if (rule === null && !(bytes <= LARGEST_KEPT_BYTES)) return null;
    const body = await this.#keep(session);
    return rule === null ? body : rule(body);
  }

  async #keep(session: GatewaySession): Promise<Buffer> {
    const pieces: Buffer[] = [];
    // Do not use `for await`, because it would delay each request.
    return await new Promise((resolve, reject) => {
      this.#request.on("data", (piece: Buffer) => {
        pieces.push(piece);
        this.#keptBytes += piece.length;
        session.keptBytes += piece.length;
        if (this.#keptBytes <= LARGEST_CHANGED_BYTES && session.keptBytes <= MOST_KEPT_BYTES) return;
        this.#request.pause();
        reject(new TooLarge());
      });
      this.#request.once("end", () => resolve(Buffer.concat(pieces)));
      this.#request.once("error", reject);
    });
  }

  /**
   * Sends the request. If the service refuses the key, sends the request again with a newer key, if there is one and
   * the body was kept.
   */
  async #ask(begin: Begin, body: Buffer | null): Promise<IncomingMessage> {
    const { key } = this.#context;
    const known = key === null ? null : await key.get();
    const answer = await this.#try(begin, known, body);
    if (answer.statusCode !== 401 || body === null || key === null || known === null) return answer;
    const newer = await key.getAfterRefusal(known).catch(() => known);
    if (newer === known) return answer;
    answer.resume();
    return await this.#try(begin, newer, body);
  }

  /**
   * Sends the request. A service may close an unused connection just when it is used again. If so and the body was
   * kept, sends the request again on another connection.
   */
  async #try(begin: Begin, key: string | null, body: Buffer | null): Promise<IncomingMessage> {
    try {
      return await this.#send(begin, key, body);
    } catch (error) {
      const wasClosed = this.#sent?.reusedSocket === true && systemCode(error) === "ECONNRESET";
      if (!wasClosed || body === null || this.#response.destroyed) throw error;
      return await this.#send(begin, key, body);
    }
  }

  async #send(begin: Begin, key: string | null, body: Buffer | null): Promise<IncomingMessage> {
    const { wire, silenceMs } = this.#context;
    const { headers } = this.#request;
    const sent = begin({
      ...wire.headersWith(key, headers),
      ...framing(headers, body),
      ...(this.#meter === null ? {} : { [ID_HEADER]: this.#meter.id }),
    });
    this.#sent = sent;
    this.#sentKey = key;
    sent.setTimeout(silenceMs, () => sent.destroy(new Silence()));
    return await new Promise((resolve, reject) => {
      sent.once("response", resolve);
      sent.on("error", reject);
      if (this.#response.destroyed) sent.destroy();
      else if (this.#meter === null) this.#sendBody(sent, body, reject);
      // Record the request in the ledger only when it is connected to the service, but before its body leaves.
      else whenConnected(sent, () => this.#sendBody(sent, body, reject));
    });
  }

  #sendBody(sent: ClientRequest, body: Buffer | null, onFailure: (error: unknown) => void): void {
    this.#meter?.leaves(body, this.#request);
    if (body !== null) sent.end(body);
    else pipeline(this.#request, sent).catch(onFailure);
  }

  #describe(error: unknown): [status: number, message: string] {
    // This error means that the fleet has no key, which waiting would not change.
    if (isFleetError(error)) return [401, error.message];
    const { report, silenceMs } = this.#context;
    return error instanceof Silence ? [504, report.silent(silenceMs)] : report.unreached(error);
  }

  #refuse(...[status, message, kind, more = {}]: Refusal): void {
    if (this.#response.headersSent) {
      this.#response.destroy();
      return;
    }
    this.#reply(status, this.#context.wire.error(message, kind), more);
  }

  /** Answers with an error whose text the runtime shows to the user. */
  #reply(status: number, text: string, headers: object): void {
    const about = { "content-type": "application/json", "content-length": Buffer.byteLength(text) };
    this.#response.writeHead(shownStatus(status), { ...headers, ...about });
    this.#response.end(text);
  }
}

/** The largest part of an error to read, in bytes. */
const LARGEST_ERROR = 64 * 1024;

async function beginningOf(answer: IncomingMessage): Promise<string> {
  const pieces: Buffer[] = [];
  let bytes = 0;
  for await (const piece of answer as AsyncIterable<Buffer>) {
    pieces.push(piece);
    bytes += piece.length;
    if (bytes > LARGEST_ERROR) break;
  }
  return Buffer.concat(pieces).toString("utf8", 0, LARGEST_ERROR);
}

class Silence extends Error {}
class TooLarge extends Error {}

type Refusal = [status: number, message: string, kind: Parameters<WireFormat["error"]>[1], headers?: object];

/** The header for the id of a request. Model services such as OpenAI's and Azure's record it. */
const ID_HEADER = "x-client-request-id";

const BADLY_FRAMED =
  "The model gateway refuses GET and HEAD requests with a body, and transfer encodings other than chunked, because the model service may disagree about where the body ends.";
const TOO_LARGE = `The model gateway passes on chat completions and responses of at most ${LARGEST_CHANGED_BYTES / 1024 / 1024} MB.`;
const CLOSING = { connection: "close" };

/** Whether this process and any other HTTP server find the end of the request at the same byte. */
function isFramed({ method, headers }: IncomingMessage): boolean {
  const encoding = headers["transfer-encoding"];
  if (encoding !== undefined && encoding.toLowerCase() !== "chunked") return false;
  const hasBody = encoding !== undefined || Number(headers["content-length"] ?? 0) !== 0;
  return !(hasBody && (method === "GET" || method === "HEAD"));
}

/** The headers about the length of the body, as this process sends it. */
function framing(headers: IncomingHttpHeaders, body: Buffer | null): IncomingHttpHeaders {
  if (body !== null) return { "content-length": String(body.length) };
  if (headers["transfer-encoding"] !== undefined) return { "transfer-encoding": "chunked" };
  const length = headers["content-length"];
  return length === undefined ? {} : { "content-length": length };
}

function whenConnected(sent: ClientRequest, then: () => void): void {
  sent.once("socket", (socket: Socket & { secureConnecting?: boolean }) => {
    if (socket.secureConnecting === true) socket.once("secureConnect", then);
    else if (socket.connecting) socket.once("connect", then);
    else then();
  });
}

/** How much of a service's words a message quotes, in characters. */
const LONGEST_WORDS = 300;

export interface Failure {
  /** At least 400. */
  status: number;
  body: string;
  /** The model that the request asked for; null if it is unknown. */
  model: string | null;
  /** Null if the service needs none. */
  key: string | null;
}

/** Describes failures of one model service with its own address and words, and with the settings of the fleet. */
export class FailureReport {
  readonly #url: string;
  readonly #key: string;
  /** Texts that no message may contain: the parts of the URL that servers do not get. */
  readonly #secrets: readonly string[];

  constructor(provider: RemoteProvider) {
    const { origin, pathname, searchParams, password } = new URL(provider.baseUrl);
    this.#url = `${origin}${pathname.replace(/\/+$/, "")}`;
    this.#secrets = [...searchParams.values(), password].filter((secret) => secret !== "");
    this.#key =
      provider.apiKey === null
        ? "a request without a key (provider.apiKey)"
        : `the key in ${nameOfSource(provider.apiKey)} (provider.apiKey)`;
  }

  get waiting(): string {
    return `${this.#url} (provider.baseUrl) has not answered so far.`;
  }

  silent(silenceMs: number): string {
    return `${this.#url} (provider.baseUrl) has not answered within ${silenceMs / 1_000} s.`;
  }

  answered({ status, body, model, key }: Failure): string {
    const words = this.#withoutSecrets(wordsIn(body), key);
    const end = words === "" ? "." : `: ${quoteUpTo(LONGEST_WORDS, words)}.`;
    return `${this.#url} ${this.#deed(status, model)}, status ${status}${end}`;
  }

  #deed(status: number, model: string | null): string {
    if (status === 401) return `refused ${this.#key}`;
    if (status === 403) return `refused access with ${this.#key}`;
    if (status === 404) {
      const which = model === null ? "the model" : `the model ${quote(model)}`;
      return `does not have ${which} (session.model) or the address (provider.baseUrl)`;
    }
    if (status === 429) return `limits the use of ${this.#key}`;
    return status >= 500 ? "failed" : "refused the request";
  }

  /** @returns the status for the server. The runtime tries again after 5xx. */
  unreached(error: unknown): [status: number, message: string] {
    const code = systemCode(error) ?? "";
    const reason = this.#withoutSecrets(reachProblem(error), null);
    const start = `${this.#url} (provider.baseUrl) cannot be`;
    if (code === "EPROTO") return [422, `${start} reached: it does not speak TLS. Try http:// instead of https://.`];
    if (!/CERT|UNABLE_TO_VERIFY/.test(code)) return [502, `${start} reached: ${asSentence(reason)}`];
    const authority = "Name the file of its certificate authority in the variable SSL_CERT_FILE";
    return [422, `${start} trusted: ${reason} (${code}). ${authority} or NODE_EXTRA_CA_CERTS.`];
  }

  /** Hides the secrets, and each word that has a part of the key, because services quote the key that they refuse. */
  #withoutSecrets(text: string, key: string | null): string {
    const plain = this.#secrets.reduce((left, secret) => left.replaceAll(secret, "***"), redactTokens(text));
    return plain.replace(/[^\s"'`<>(),;:]+/g, (word) => (quotesKey(word, key) ? "***" : word));
  }
}

/** How long a part of a key is at least that a message must not contain, in characters. */
const KEY_PART = 5;

function quotesKey(word: string, key: string | null): boolean {
  if (/\*\*|\w(?:\.{3}|…)\w/.test(word)) return true;
  if (key === null) return false;
  if (word.includes(key) || word.replace(/\.$/, "").endsWith(key.slice(-4))) return true;
  for (let at = 0; at + KEY_PART <= key.length; at++) if (word.includes(key.slice(at, at + KEY_PART))) return true;
  return false;
}

/** The text for people in the body of an error, in one line. */
function wordsIn(body: string): string {
  const { error, message, detail } = parseObject(body) ?? { message: body.replace(/<[^>]*>/g, " ") };
  const inner = isObject(error) ? error.message : error;
  const words = [inner, message, detail].find((each) => typeof each === "string") ?? "";
  return String(words).replace(/\s+/g, " ").trim();
}
