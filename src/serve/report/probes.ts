import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { abortable, deadline } from "../../base/clock.js";
import type { Address } from "../../config/rules.js";
import type { DoorEvent, DoorListeners } from "../../door/state/report.js";
import { listenOn, stopListening } from "../../runtime/launch/listen.js";
import type { LogLevel, ServeContext, ServeLog } from "../context.js";
import { logFailure } from "../failures.js";
import type { FleetMetrics } from "./metrics.js";

/** Each reason is a sentence for people. An empty list means that all is well. */
type Reasons = readonly string[] | Promise<readonly string[]>;

/** The checks that the endpoint asks for: whether to replace the supervisor, and whether to send work to its host. */
export interface Health {
  /** Reasons to replace this process (`/healthz`). Trouble with a single server is not such a reason. */
  unhealthy(): Reasons;
  /** Reasons to send no new work to this host at the moment (`/readyz`). */
  unready(): Reasons;
}

interface ProbesContext {
  health: Health;
  metrics: Pick<FleetMetrics, "text" | "contentType" | "judged" | "failed">;
  log: ServeLog;
  /** How long a health check may take before it counts as failed, in milliseconds. Default: 1,000. */
  checkMs?: number;
}

export interface ProbeAnswer {
  status: number;
  type: string;
  body: string;
}

/** Answers `/healthz`, `/readyz` and `/metrics`, or some of them. */
export interface Probes {
  /** Null if this object does not answer a probe at `path`. */
  answer(path: string): Promise<ProbeAnswer | null>;
}

const PROBES: readonly string[] = ["/metrics", "/healthz", "/readyz"];
const TEXT = "text/plain; charset=utf-8";

/** Answers the probes of a supervisor. */
export class HealthProbes implements Probes {
  readonly #context: ProbesContext;
  readonly #hasMetrics: boolean;

  constructor(context: ProbesContext, { hasMetrics = true } = {}) {
    this.#context = context;
    this.#hasMetrics = hasMetrics;
  }

  async answer(path: string): Promise<ProbeAnswer | null> {
    switch (path) {
      case "/healthz":
        return verdict(await reasonsOf("unhealthy", this.#context));
      case "/readyz":
        return verdict(await reasonsOf("unready", this.#context));
      case "/metrics":
        return this.#hasMetrics ? await scrape(this.#context) : null;
      default:
        return null;
    }
  }
}

async function scrape(options: ProbesContext): Promise<ProbeAnswer> {
  const [unhealthy, unready] = await Promise.all([reasonsOf("unhealthy", options), reasonsOf("unready", options)]);
  options.metrics.judged({ healthy: unhealthy.length === 0, ready: unready.length === 0 });
  try {
    return { status: 200, type: options.metrics.contentType, body: await options.metrics.text() };
  } catch (error) {
    logProbeFailure(options, error);
    return { status: 500, type: TEXT, body: "The metrics could not be collected; see the log of serve.\n" };
  }
}

function verdict(reasons: readonly string[]): ProbeAnswer {
  const ok = reasons.length === 0;
  return { status: ok ? 200 : 503, type: "application/json", body: `${JSON.stringify({ ok, reasons })}\n` };
}

/**
 * The reasons that a check returns. If the check itself fails or hangs, returns one reason that states this. The error
 * of the check is only logged, because it may name users.
 */
async function reasonsOf(check: keyof Health, options: ProbesContext): Promise<readonly string[]> {
  using limit = deadline(options.checkMs ?? 1000);
  try {
    return await abortable(Promise.resolve(options.health[check]()), limit.signal);
  } catch (error) {
    logProbeFailure(options, error);
    return limit.signal.aborted ? ["the check took too long"] : ["the check itself failed; see the log of serve"];
  }
}

function logProbeFailure(options: ProbesContext, error: unknown): void {
  logFailure(options, "the health endpoint failed", error);
}

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

/** The log level of each event at the front door. The content of clients' messages is never logged. */
const LEVELS: Record<DoorEvent["event"], LogLevel> = {
  connected: "debug",
  "host-connected": "debug",
  closed: "debug",
  "token-refused": "warn",
  "protocol-error": "warn",
  "tls-refused": "warn",
  "certificate-replaced": "info",
  "certificate-problem": "warn",
  denied: "warn",
  dropped: "debug",
  "server-lost": "info",
  "server-ended": "info",
  "host-lost": "info",
  "session-reopened": "info",
  "session-unloaded": "info",
  failed: "error",
};

/** Reports requests and events at the front door or at the HTTP API to the metrics and the log. */
export function doorListeners(
  { config, metrics, log }: Pick<ServeContext, "config" | "metrics" | "log">,
  where: "front door" | "HTTP API" = "front door",
): DoorListeners {
  return {
    onRequest: (report) => {
      metrics.requested(report.method, report.outcome, report.ms / 1000);
      if (config.serve.accessLog) log("info", "request", { ...report });
    },
    onSignOn: ({ via, result, ms }) => metrics.signedOn(via, result, ms / 1000),
    onEvent: ({ event, ...fields }) => {
      if (event === "failed") metrics.failed(fields.code ?? "FLEET_INTERNAL");
      if (fields.limit !== undefined) metrics.series.limitsReached.inc({ limit: fields.limit });
      log(LEVELS[event], `${where}: ${event}`, fields);
    },
  };
}
