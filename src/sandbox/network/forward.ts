import { type IncomingMessage, request, type ServerResponse } from "node:http";
import type { Socket } from "node:net";

/** Headers that concern only one connection, so a proxy must not forward them (RFC 9110, 7.6.1). */
const OF_CONNECTION = new Set(
  "connection expect keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade".split(
    " ",
  ),
);

/**
 * The `http://` URL of a request that a client sent to the proxy without encryption. Null for any other request, and if
 * the URL contains credentials.
 */
export function plainUrl({ url = "" }: IncomingMessage): URL | null {
  const parsed = /^http:\/\//i.test(url) && URL.canParse(url) ? new URL(url) : null;
  return parsed === null || parsed.username !== "" || parsed.password !== "" ? null : parsed;
}

/**
 * Sends the client's request over the open connection `upstream`, and passes the answer back. Answers 502 if that
 * fails.
 */
export function forward(message: IncomingMessage, response: ServerResponse, url: URL, upstream: Socket): void {
  const { method, headers } = message;
  const fail = () => {
    upstream.destroy();
    if (response.headersSent) response.destroy();
    else response.writeHead(502, { connection: "close" }).end();
  };
  response.on("close", () => upstream.destroy());
  try {
    const isChunked = headers["transfer-encoding"] !== undefined;
    const length = headers["content-length"];
    // State the length of the body here, because the client could take it out by naming it in `Connection`.
    const framing = isChunked ? { "transfer-encoding": "chunked" } : length && { "content-length": length };
    const sent = request({
      method,
      path: `${url.pathname}${url.search}`,
      headers: { ...passedOn(headers), host: url.host, ...framing },
      createConnection: () => upstream,
    });
    sent.on("error", fail);
    sent.on("close", () => {
      if (!response.headersSent) fail();
    });
    sent.on("response", (answered) => {
      try {
        response.writeHead(answered.statusCode ?? 502, passedOn(answered.headers));
      } catch {
        fail(); // the answer has a header that Node.js refuses to send
        return;
      }
      answered.on("error", fail);
      answered.pipe(response);
    });
    message.pipe(sent);
  } catch {
    fail(); // the request has a header that Node.js refuses to send
  }
}

/** The headers to pass on: all except those of the connection, and those that the header `Connection` names. */
function passedOn(headers: IncomingMessage["headers"]): IncomingMessage["headers"] {
  const named = new Set((headers.connection ?? "").split(",").map((name) => name.trim().toLowerCase()));
  return Object.fromEntries(Object.entries(headers).filter(([name]) => !OF_CONNECTION.has(name) && !named.has(name)));
}
