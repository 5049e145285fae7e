import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { Address } from "../../config/rules.js";
import { abortable, deadline } from "../../runtime/deadline.js";
import { listenOn } from "../../runtime/launch/listen.js";
import type { ServeLog } from "../context.js";
import { logFailure } from "../failures.js";
import type { FleetMetrics } from "./metrics.js";

/** Each reason is a sentence for people. An empty list means that all is well. */
type Reasons = readonly string[] | Promise<readonly string[]>;

/** The questions of the endpoint to the supervisor: whether to replace it, and whether to send it work. */
export interface Health {
  /** Reasons to replace this process (`/healthz`). Trouble with a single server is not such a reason. */
  unhealthy(): Reasons;
  /** Reasons to send no new work to this host at the moment (`/readyz`). */
  unready(): Reasons;
}

export interface HealthEndpointOptions {
  address: Address;
  health: Health;
  metrics: Pick<FleetMetrics, "text" | "contentType" | "judged" | "failed">;
  log: ServeLog;
  /** How long a check of the health may take before it counts as failed, in milliseconds. Default: 1,000. */
  checkMs?: number;
  /** How long a client may take to send its request, read the answer, or ask again, in milliseconds. Default: 5,000. */
  clientMs?: number;
  /** Ends the wait for the address, such as a name lookup. It does not close the endpoint. */
  signal: AbortSignal;
}

interface Answer {
  status: number;
  type: string;
  body: string;
  headers?: Record<string, string>;
}

/** The limit on open connections, because the supervisor needs file descriptors for other work, too. */
const MAX_CONNECTIONS = 512;
/** How long answers in progress may take when the endpoint closes, in milliseconds. */
const CLOSE_GRACE_MS = 500;
const TEXT = "text/plain; charset=utf-8";

/** Serves `GET` and `HEAD` of `/metrics`, `/healthz` and `/readyz`, for Prometheus, Kubernetes and load balancers. */
export class HealthEndpoint {
  readonly address: Address;
  readonly #server: Server;
  readonly #answering: Set<ServerResponse>;
  #closing: Promise<void> | undefined;

  static async open(options: HealthEndpointOptions): Promise<HealthEndpoint> {
    const { clientMs = 5000 } = options;
    const answering = new Set<ServerResponse>();
    const server = createServer(
      // Only this regular check finds a client that sends nothing, or only a byte now and then.
      { connectionsCheckingInterval: Math.min(1000, clientMs / 2), maxHeaderSize: 8192 },
      (request, response) => {
        answering.add(response);
        response.once("close", () => answering.delete(response));
        answer(request, response, options, server).catch((error: unknown) => {
          logError(options, error);
          response.destroy();
        });
      },
    );
    server.requestTimeout = clientMs; // includes the headers
    server.timeout = clientMs; // for a client that does not read
    server.keepAliveTimeout = clientMs; // for a client that got its answer before it sent its whole body
    server.maxConnections = MAX_CONNECTIONS;
    const address = await listenOn(server, "serve.metrics", options.address, options.signal);
    // Accepting a connection fails when this process has no file descriptors left.
    server.on("error", (error) => logError(options, error));
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
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    const answers = [...this.#answering].map((response) => new Promise((resolve) => response.once("close", resolve)));
    using limit = deadline(CLOSE_GRACE_MS);
    await abortable(Promise.all(answers), limit.signal).catch(() => undefined); // late answers are cut
    // Clients that keep the connection for later, or have sent nothing yet, would keep the server open.
    this.#server.closeAllConnections();
    await closed;
  }
}

async function answer(
  request: IncomingMessage,
  response: ServerResponse,
  options: HealthEndpointOptions,
  server: Server,
): Promise<void> {
  const { status, type, body, headers } = await answerTo(request, options);
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

async function answerTo({ method, url = "/" }: IncomingMessage, options: HealthEndpointOptions): Promise<Answer> {
  const known = {
    "/metrics": async () => await scrape(options),
    "/healthz": async () => verdict(await reasonsOf("unhealthy", options)),
    "/readyz": async () => verdict(await reasonsOf("unready", options)),
  };
  const path = url.replace(/\?.*/s, "");
  if (!Object.hasOwn(known, path)) {
    return { status: 404, type: TEXT, body: `There are ${Object.keys(known).join(", ")}.\n` };
  }
  if (method !== "GET" && method !== "HEAD") {
    return { status: 405, type: TEXT, body: "Allowed are GET and HEAD.\n", headers: { Allow: "GET, HEAD" } };
  }
  return await known[path as keyof typeof known]();
}

async function scrape(options: HealthEndpointOptions): Promise<Answer> {
  const [unhealthy, unready] = await Promise.all([reasonsOf("unhealthy", options), reasonsOf("unready", options)]);
  options.metrics.judged({ healthy: unhealthy.length === 0, ready: unready.length === 0 });
  try {
    return { status: 200, type: options.metrics.contentType, body: await options.metrics.text() };
  } catch (error) {
    logError(options, error);
    return { status: 500, type: TEXT, body: "The metrics could not be collected; see the log of serve.\n" };
  }
}

function verdict(reasons: readonly string[]): Answer {
  const ok = reasons.length === 0;
  return { status: ok ? 200 : 503, type: "application/json", body: `${JSON.stringify({ ok, reasons })}\n` };
}

/**
 * The reasons that a check gives. If the check itself fails or hangs, that is the only reason. Its error is only logged,
 * because the error may name users.
 */
async function reasonsOf(check: keyof Health, options: HealthEndpointOptions): Promise<readonly string[]> {
  using limit = deadline(options.checkMs ?? 1000);
  try {
    return await abortable(Promise.resolve(options.health[check]()), limit.signal);
  } catch (error) {
    logError(options, error);
    return limit.signal.aborted ? ["the check took too long"] : ["the check itself failed; see the log of serve"];
  }
}

function logError(options: HealthEndpointOptions, error: unknown): void {
  logFailure(options, "the health endpoint failed", error);
}
