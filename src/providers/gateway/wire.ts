import type { IncomingHttpHeaders } from "node:http";
import type { RemoteProvider } from "../../config/schema.js";
import { type Member, type ScanLimits, scanWithin } from "../../runtime/wire/scan.js";

/** The differences between the wire formats of model services. Paths and headers are as runtime 1.0.85 sends them. */
interface Wire {
  /** The header that contains the key, and the text before the key in it. */
  readonly keyHeader: string;
  readonly keyPrefix: string;
  /** The requests that the gateway passes on: method and path below the base URL. */
  readonly requests: readonly string[];
  /** The body of an error. */
  error(message: string, kind: ErrorKind): unknown;
}

/** The types of errors that both formats have. */
type ErrorKind =
  | "authentication_error"
  | "invalid_request_error"
  | "permission_error"
  | "rate_limit_error"
  | "request_too_large"
  | "api_error";

/** The codes of OpenAI's errors. */
const CODES: Partial<Record<ErrorKind, string>> = {
  authentication_error: "invalid_api_key",
  rate_limit_error: "insufficient_quota",
};

const openaiError = (message: string, kind: ErrorKind) => ({
  error: { message, type: kind, param: null, code: CODES[kind] ?? null },
});

/** The header for a bearer token, the same for every type of provider. */
const BEARER = { keyHeader: "authorization", keyPrefix: "Bearer " };

const WIRES: Readonly<Record<RemoteProvider["type"], Wire>> = {
  openai: {
    ...BEARER,
    requests: ["POST /chat/completions", "POST /responses", "GET /models"],
    error: openaiError,
  },
  azure: {
    keyHeader: "api-key",
    keyPrefix: "",
    requests: ["POST /openai/v1/chat/completions", "POST /openai/v1/responses", "GET /openai/v1/models"],
    error: openaiError,
  },
  anthropic: {
    keyHeader: "x-api-key",
    keyPrefix: "",
    requests: ["POST /v1/messages", "POST /v1/messages/count_tokens", "GET /v1/models"],
    error: (message, type) => ({ type: "error", error: { type, message } }),
  },
};

/**
 * The headers of a request that reach the model service: those that the runtime (1.0.85) sends, without the ones about
 * the connection, the length and the key. An agent can send others, which could choose who pays, or how the service
 * reads the length of the body.
 */
const PASSED_ON =
  /^(?:accept|content-type|user-agent|anthropic-(?:beta|version)|x-initiator|x-interaction-(?:id|type)|x-request-id|x-stainless-[a-z-]+)$/;

/** The headers of an answer that reach the server: its type and length, its id, and when to try again. */
const PASSED_BACK =
  /^(?:content-(?:encoding|length|type)|retry-after(?:-ms)?|x-should-retry|(?:anthropic|x)-ratelimit-[a-z0-9-]+|(?:apim-|x-|x-github-|x-ms-)?request-id)$/;

/** The wire format of one provider: which requests the gateway passes on, and with which headers. */
export class WireFormat {
  readonly #wire: Wire;
  readonly #type: RemoteProvider["type"];
  readonly #base: URL;

  constructor({ type, baseUrl, bearer }: Pick<RemoteProvider, "type" | "baseUrl" | "bearer">) {
    this.#wire = { ...WIRES[type], ...(bearer ? BEARER : {}) };
    this.#type = type;
    this.#base = new URL(baseUrl);
  }

  /**
   * The path and query with which a request is sent to the model service; null if the gateway does not pass this
   * request on. Compares complete paths, so no path leads out of the base URL.
   *
   * The runtime appends a path such as `/chat/completions` to the path of the base URL. For Azure, it first cuts off
   * the end of the base URL's path. So the part in front of the appended path must be the path of the base URL or, for
   * Azure, its beginning.
   */
  pathFor(method: string | undefined, url: string | undefined): string | null {
    const [path = "", query = ""] = (url ?? "").split("?", 2);
    const base = this.#base.pathname.replace(/\/+$/, "");
    for (const request of this.#wire.requests) {
      const [allowed, end = ""] = request.split(" ");
      if (method !== allowed || !path.endsWith(end)) continue;
      const front = path.slice(0, -end.length);
      if (front !== base && !(this.#type === "azure" && (base === front || base.startsWith(`${front}/`)))) continue;
      // A query of the base URL may contain a secret of the service, so servers do not get it.
      const search = this.#base.search === "" ? query : this.#base.search.slice(1);
      return search === "" ? path : `${path}?${search}`;
    }
    return null;
  }

  /** Whether the request consumes tokens of the model. Other requests list models or count the tokens of a text. */
  consumes(method: string, path: string): boolean {
    return method === "POST" && !path.includes("/count_tokens");
  }

  /** The rule for the body of a request that consumes tokens; null if there is none. */
  ruleFor(path: string): BodyRule | null {
    const [plain = ""] = path.split("?", 1);
    if (plain.endsWith("/chat/completions")) return withUsage;
    return plain.endsWith("/responses") ? inForeground : null;
  }

  /** The secret of a request; null if it has none. */
  secretOf(headers: IncomingHttpHeaders): string | null {
    const { keyHeader, keyPrefix } = this.#wire;
    const value = headers[keyHeader];
    return typeof value === "string" && value.startsWith(keyPrefix) ? value.slice(keyPrefix.length) : null;
  }

  /**
   * The headers of the request to the model service: the needed ones of the server, with the provider's key in place of
   * the session's token. The usage is read from the answer, so the answer must not be compressed.
   *
   * @param key null if the service needs none
   */
  headersWith(key: string | null, headers: IncomingHttpHeaders): IncomingHttpHeaders {
    const { keyHeader, keyPrefix } = this.#wire;
    const secret = key === null ? {} : { [keyHeader]: `${keyPrefix}${key}` };
    return { ...only(PASSED_ON, headers), "accept-encoding": "identity", ...secret };
  }

  /** The headers of an answer for the server. */
  headersBack(headers: IncomingHttpHeaders): IncomingHttpHeaders {
    return only(PASSED_BACK, headers);
  }

  error(message: string, kind: ErrorKind): string {
    return JSON.stringify(this.#wire.error(message, kind));
  }
}

function only(names: RegExp, headers: IncomingHttpHeaders): IncomingHttpHeaders {
  return Object.fromEntries(Object.entries(headers).filter(([name]) => names.test(name)));
}

/** Returns the body that the service gets. @throws BadBody */
export type BodyRule = (body: Buffer) => Buffer;

/** The gateway refuses the body of a request. The message has the reason. */
export class BadBody extends Error {}

/** No body that the runtime sends exceeds these limits. */
const LIMITS: ScanLimits = { depth: 100, values: 100_000 };
const UNCLEAR = `The model gateway refuses a body that is not a JSON object in UTF-8, that has a key twice or with an escape, or that has more than ${LIMITS.values} values or ${LIMITS.depth} levels.`;
const IN_BACKGROUND = 'The model gateway refuses "background": true, because the usage would not count.';

/** The end of the body of each streamed request of the runtime (1.0.85). */
const WITH_USAGE = Buffer.from(',"stream_options":{"include_usage":true}}');

/**
 * The body of a chat completion that asks for the usage if it asks for a stream. Returns the same body if it ends as
 * the runtime's bodies do and has the key nowhere else, because a scan would take time. JSON can also write a letter of
 * the key as an escape that begins with `\u`.
 */
function withUsage(body: Buffer): Buffer {
  const from = body.length - WITH_USAGE.length;
  const asksAtEnd = body.subarray(-WITH_USAGE.length).equals(WITH_USAGE) && body.indexOf('"stream_options"') > from;
  if (asksAtEnd && !body.includes("\\u")) return body;
  const members = membersOf(body);
  const stream = members.get("stream");
  if (stream === undefined || isOff(body, stream)) return body;
  const options = members.get("stream_options");
  const { start, end } = options ?? { start: stream.end, end: stream.end };
  const text = `${options === undefined ? ',"stream_options":' : ""}{"include_usage":true}`;
  return Buffer.concat([body.subarray(0, start), Buffer.from(text), body.subarray(end)]);
}

/**
 * The body of a request for a response that is not made in the background, where its usage would not pass the gateway.
 */
function inForeground(body: Buffer): Buffer {
  const background = membersOf(body).get("background");
  if (background !== undefined && !isOff(body, background)) throw new BadBody(IN_BACKGROUND);
  return body;
}

/**
 * The members of the JSON object in a body, by key. Does not parse the body, because the process would serve nobody
 * else during that time. If the body is not valid JSON, the service still finds the same members, or refuses it.
 */
function membersOf(body: Buffer): ReadonlyMap<string, Member> {
  const scan = scanWithin(body, LIMITS);
  const members = new Map<string, Member>(scan?.members.map((member) => [member.key, member]));
  const isClear = scan?.over === null && members.size === scan.members.length;
  if (!isClear || [...members.keys()].some((key) => key.includes("\\"))) throw new BadBody(UNCLEAR);
  return members;
}

function isOff(body: Buffer, { start, end }: Member): boolean {
  return ["false", "null"].includes(body.toString("latin1", start, end));
}
