import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { Address } from "../../config/rules.js";
import { abortable, deadline } from "../../runtime/clock.js";
import { listenOn, stopListening } from "../../runtime/launch/listen.js";
import { HealthProbes, logProbeFailure, PROBES, type ProbeAnswer, type ProbesContext, TEXT } from "./probes.js";

export interface HealthEndpointOptions extends ProbesContext {
  address: Address;
  /** How long a client may take to send its request, read the answer, or ask again, in milliseconds. Default: 5,000. */
  clientMs?: number;
  /** Aborts the opening, for example during a name lookup. After the opening, it has no effect. */
  signal: AbortSignal;
}

interface Answer extends ProbeAnswer {
  headers?: Record<string, string>;
}

/** The maximum number of open connections, because the supervisor needs file descriptors for other work, too. */
const MAX_CONNECTIONS = 512;
/** How long answers in progress may still take when the endpoint closes, in milliseconds. */
const CLOSE_GRACE_MS = 500;

/** Serves `GET` and `HEAD` of `/metrics`, `/healthz` and `/readyz`, for Prometheus, Kubernetes and load balancers. */
export class HealthEndpoint {
  readonly address: Address;
  readonly #server: Server;
  readonly #answering: Set<ServerResponse>;
  #closing: Promise<void> | undefined;

  static async open(options: HealthEndpointOptions): Promise<HealthEndpoint> {
    const { clientMs = 5000 } = options;
    const probes = new HealthProbes(options);
    const answering = new Set<ServerResponse>();
    const server = createServer(
      // Only this regular check finds a client that sends nothing, or only a byte from time to time.
      { connectionsCheckingInterval: Math.min(1000, clientMs / 2), maxHeaderSize: 8192 },
      (request, response) => {
        answering.add(response);
        response.once("close", () => answering.delete(response));
        answer(request, response, probes, server).catch((error: unknown) => {
          logProbeFailure(options, error);
          response.destroy();
        });
      },
    );
    server.requestTimeout = clientMs; // includes the headers
    server.timeout = clientMs; // for a client that does not read
    server.keepAliveTimeout = clientMs; // for a client that got its answer before it sent its whole body
    server.maxConnections = MAX_CONNECTIONS;
    const address = await listenOn(server, "serve.metrics", options.address, options.signal);
    // The server emits `error` when this process has no file descriptor left for a connection. Unhandled, it would end
    // `serve`.
    server.on("error", (error) => logProbeFailure(options, error));
    return new HealthEndpoint(server, address, answering);
  }

  private constructor(server: Server, address: Address, answering: Set<ServerResponse>) {
    this.#server = server;
    this.address = address;
    this.#answering = answering;
  }

  /** Accepts no more connections, finishes the answers in progress within half a second, and closes all connections. */
  async close(): Promise<void> {
    this.#closing ??= this.#close();
    await this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #close(): Promise<void> {
    const closed = stopListening(this.#server);
    const answers = [...this.#answering].map((response) => new Promise((resolve) => response.once("close", resolve)));
    using limit = deadline(CLOSE_GRACE_MS);
    await abortable(Promise.all(answers), limit.signal).catch(() => undefined); // cut the answers that take longer
    // Clients that keep their connection for a later request, or have sent no request so far, would keep the server
    // open.
    this.#server.closeAllConnections();
    await closed;
  }
}

async function answer(
  request: IncomingMessage,
  response: ServerResponse,
  probes: HealthProbes,
  server: Server,
): Promise<void> {
  const { status, type, body, headers } = await answerTo(request, probes);
  if (!server.listening) response.setHeader("Connection", "close");
  response.writeHead(status, {
    "Content-Type": type,
    "Content-Length": Buffer.byteLength(body),
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    ...headers,
  });
  response.end(request.method === "HEAD" ? undefined : body);
}

async function answerTo({ method, url = "/" }: IncomingMessage, probes: HealthProbes): Promise<Answer> {
  const path = url.replace(/\?.*/s, "");
  if (!PROBES.includes(path)) {
    return { status: 404, type: TEXT, body: `There are ${PROBES.join(", ")}.\n` };
  }
  if (method !== "GET" && method !== "HEAD") {
    return { status: 405, type: TEXT, body: "Allowed are GET and HEAD.\n", headers: { Allow: "GET, HEAD" } };
  }
  return (await probes.answer(path)) as ProbeAnswer;
}
