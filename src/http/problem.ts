import { randomUUID } from "node:crypto";
import { STATUS_CODES } from "node:http";
import { isTimeout } from "../base/clock.js";
import { ERRORS, type ErrorEntry, FleetError, isCommand, isFleetError } from "../base/errors.js";

/** An answer that reports an error, as RFC 9457 describes it. */
interface Problem {
  status: number;
  headers: Record<string, string>;
  body: Record<string, unknown>;
}

export const PROBLEM_TYPE = "application/problem+json";

/**
 * The headers of every answer. They forbid, among other things, caching and guessing the content type. The console's
 * page replaces some of them.
 */
export const HEADERS = {
  "Cache-Control": "no-store",
  "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
  "Cross-Origin-Resource-Policy": "same-site",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
};

/** How long a client waits before it repeats a request, in seconds, if the error does not set a time. */
const RETRY_S = 1;
const IN_LOG = "The log of serve has the reason, with the id of the request.";

/** An error of the HTTP protocol itself, with its own status and headers. */
export class HttpError extends Error {
  readonly error: FleetError;
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;

  constructor(error: FleetError, status: number, headers: Readonly<Record<string, string>> = {}) {
    super(error.message, { cause: error });
    this.error = error;
    this.status = status;
    this.headers = headers;
  }
}

/** Matches the codes of errors about the host itself. Their texts contain paths and addresses of the host. */
const OF_THE_MACHINE = /^FLEET_(?:STATE|STORE|STORAGE|FILES|PROCESSES)_/;

/**
 * Whether only the log may contain the details of an error: it is a bug, or a fault that only the operator can repair.
 */
export function isForLog({ code }: Pick<FleetError, "code">): boolean {
  const { httpStatus }: ErrorEntry = ERRORS[code];
  return httpStatus === 500 || OF_THE_MACHINE.test(code);
}

/**
 * The error as the client sees it, without details that only the log may contain.
 *
 * @param requestId with which an operator finds the request in the log
 */
export function problemOf(thrown: unknown, requestId: string): Problem {
  const error = fleetErrorOf(thrown);
  const { title, httpStatus }: ErrorEntry = ERRORS[error.code];
  const status = thrown instanceof HttpError ? thrown.status : httpStatus;
  const { code, retryable, limit, retryAfterMs } = error;
  const known = { ...(limit === undefined ? {} : { limit }), ...(retryAfterMs === undefined ? {} : { retryAfterMs }) };
  return {
    status,
    headers: {
      ...(status === 401 ? { "WWW-Authenticate": 'Bearer realm="copilotfleet"' } : {}),
      ...(status === 429 || status === 503 ? { "Retry-After": String(retrySeconds(retryAfterMs)) } : {}),
      ...(thrown instanceof HttpError ? thrown.headers : {}),
    },
    body: {
      type: `urn:copilotfleet:error:${code}`,
      title,
      status,
      code,
      detail: isForLog(error) ? `${title} ${IN_LOG}` : error.message,
      suggestions: isForLog(error) ? [] : stepsAfter(error),
      retryable,
      ...known,
      requestId,
    },
  };
}

/** The next steps for a client. Leaves out commands, because a client has no shell on the host. */
function stepsAfter({ code, suggestions, retryable }: FleetError): string[] {
  const { httpFix }: ErrorEntry = ERRORS[code];
  const steps = suggestions.filter((step) => !isCommand(step) && !/\bcopilotfleet [a-z]/.test(step));
  const all = [...new Set([...(httpFix === undefined ? [] : [httpFix]), ...steps])];
  if (all.length > 0) return all;
  return [retryable ? "Try again in a moment." : "Ask an operator of the fleet."];
}

/** The answers to requests that Node.js cannot read, by the error code of Node.js. */
const MALFORMED: Readonly<Record<string, { status: number; code: FleetError["code"]; message: string }>> = {
  HPE_HEADER_OVERFLOW: {
    status: 431,
    code: "FLEET_CONTENT_TOO_LARGE",
    message: "The head of the request is too large.",
  },
  HPE_CHUNK_EXTENSIONS_OVERFLOW: {
    status: 413,
    code: "FLEET_CONTENT_TOO_LARGE",
    message: "The chunks of the body have too many extensions.",
  },
  ERR_HTTP_REQUEST_TIMEOUT: {
    status: 408,
    code: "FLEET_STATE_BUSY",
    message: "The request did not arrive in time.",
  },
};

/** The answer to a request that Node.js cannot read. */
export function malformed(nodeCode: string | undefined): Problem {
  const { status, code, message } = MALFORMED[nodeCode ?? ""] ?? {
    status: 400,
    code: "FLEET_USAGE_INVALID",
    message: "The request is not valid HTTP.",
  };
  const error = new FleetError(code, message, { suggestions: ["Send a request as RFC 9112 describes it."] });
  return problemOf(new HttpError(error, status), randomUUID());
}

function headersOf({ headers, body }: Problem): Record<string, string> {
  return { ...HEADERS, ...headers, "X-Request-Id": String(body.requestId), "Content-Type": PROBLEM_TYPE };
}

export function asResponse(problem: Problem): Response {
  return new Response(JSON.stringify(problem.body), { status: problem.status, headers: headersOf(problem) });
}

/** The complete HTTP answer to a request that Node.js could not read. */
export function asBytes(problem: Problem): string {
  const { status, body } = problem;
  const text = JSON.stringify(body);
  const all = { ...headersOf(problem), "Content-Length": Buffer.byteLength(text), Connection: "close" };
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}`);
  return [`HTTP/1.1 ${status} ${STATUS_CODES[status]}`, ...lines, "", text].join("\r\n");
}

/** Turns anything that was thrown into an error of the fleet. */
export function fleetErrorOf(thrown: unknown): FleetError {
  if (thrown instanceof HttpError) return thrown.error;
  if (isFleetError(thrown)) return thrown;
  if (isTimeout(thrown)) {
    return new FleetError("FLEET_STATE_BUSY", "The request took too long.", { cause: thrown });
  }
  return new FleetError("FLEET_INTERNAL", "The fleet failed to handle this request.", { cause: thrown });
}

function retrySeconds(ms: number | undefined): number {
  return ms === undefined ? RETRY_S : Math.max(1, Math.ceil(ms / 1_000));
}

/**
 * The error for every request without a valid token. It is always the same, so that a stranger does not learn what is
 * wrong with a token.
 */
export function unauthenticated(): FleetError {
  return new FleetError("FLEET_TOKEN_REFUSED", "The request has no valid token in its header Authorization.", {
    suggestions: ["Send the header Authorization with the text Bearer TOKEN."],
  });
}

export function invalid(message: string): FleetError {
  return new FleetError("FLEET_USAGE_INVALID", message, {
    suggestions: ["See the description of the route in /openapi.json."],
  });
}
