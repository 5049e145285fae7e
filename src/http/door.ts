import { createServer, type RequestListener, type Server, type ServerOptions, type ServerResponse } from "node:http";
import { createServer as createSecureServer, type Server as SecureServer } from "node:https";
import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { getRequestListener } from "@hono/node-server";
import { abortable, deadline, NEVER } from "../base/clock.js";
import { option } from "../base/errors.js";
import { LONGEST_TIMER_MS, parseDuration } from "../base/values/measures.js";
import type { Address } from "../config/rules.js";
import type { DoorDrain } from "../door/door.js";
import type { DoorListeners } from "../door/state/report.js";
import { DoorCertificates, doorFiles } from "../identity/tls/certificates.js";
import { checkExposure, checkInherited } from "../identity/tls/exposure.js";
import { watchCertificates } from "../identity/tls/files.js";
import { type InheritedListener, listenOn, showAddress, stopListening } from "../runtime/launch/listen.js";
import type { StreamCounts } from "../serve/context.js";
import type { Probes } from "../serve/report/probes.js";
import { createApp } from "./app.js";
import { DoorState, type HttpContext, Origins } from "./door-state.js";
import { asBytes, asResponse, malformed } from "./problem.js";

/** How long a client may take to send the head of a request, and the whole request, in milliseconds. */
const HEAD_MS = 10_000;
const REQUEST_MS = 60_000;
/**
 * How long a connection without a request stays open, in milliseconds. Proxies such as nginx reuse a connection for up
 * to a minute. If the door closed it earlier, it could do so just when the proxy sends a request, and the request would
 * fail.
 */
const IDLE_MS = 65_000;
/** How often to look for connections that are too slow, in milliseconds. */
const CHECK_MS = 1_000;
/** How long the door waits for the answers to requests that it has cut, in milliseconds. */
const GRACE_MS = 2_000;
/** How often to look for requests whose tokens are no longer valid, in milliseconds. */
const RECHECK_MS = 2_000;
const LONGEST_HEAD = 32 * 1024;

export interface HttpDoorOptions extends DoorListeners {
  /** An address, or an inherited descriptor that already listens. Port 0 means any free port. */
  listen: Address | InheritedListener;
  /** If this signal aborts before the door listens, `openHttpDoor` fails. */
  signal?: AbortSignal | undefined;
  /** Answers probes and metrics in place of the door itself. */
  probes?: Probes | undefined;
}

/**
 * Opens the HTTP API.
 *
 * @throws FleetError `FLEET_ADDRESS_TAKEN`, `FLEET_ADDRESS_UNUSABLE`; `FLEET_CONFIG_INVALID` when the files of
 * `serve.tls` cannot be used, or when other machines can reach the address and there is no TLS; the signal's reason
 * when it aborts first.
 */
export async function openHttpDoor(context: HttpContext, options: HttpDoorOptions): Promise<HttpDoor> {
  const { listen, signal = NEVER, probes = null, ...listeners } = options;
  const { config } = context;
  checkExposure(config, listen, { key: "serve.http", hasPeers: false });
  const files = doorFiles(config.serve.tls);
  const certificates = files === null ? null : new DoorCertificates(files);
  const origins = new Origins({
    origins: config.http.origins,
    listen: "fd" in listen ? null : listen.host,
    isSecure: certificates !== null,
    isCertified: (name) => certificates?.isFor(name) === true,
  });
  const door = new HttpDoor(new DoorState(context, { listeners, origins, probes }), certificates);
  await door.listen(listen, signal);
  try {
    if ("fd" in listen) checkInherited(config, door.address);
  } catch (error) {
    await door.close();
    throw error;
  }
  return door;
}

/** An open address of the HTTP API. */
export class HttpDoor implements AsyncDisposable {
  readonly #state: DoorState;
  readonly #server: Server | SecureServer;
  readonly #certificates: DoorCertificates | null;
  /** All open connections. Node.js closes a connection whose TLS handshake is not complete only by its socket. */
  readonly #sockets = new Set<Socket>();
  readonly #closed = new AbortController();
  #address: Address = { host: "", port: 0 };
  #closing: Promise<{ cut: number }> | undefined;

  constructor(state: DoorState, certificates: DoorCertificates | null) {
    this.#state = state;
    this.#certificates = certificates;
    const app = createApp(state);
    const handle = getRequestListener(async (request, env) => await app.fetch(request, env), {
      // Do not replace the global Request and Response, which belong to the program that uses this library.
      overrideGlobalObjects: false,
      // Only a malformed request gets here. The app answers all other errors.
      errorHandler: () => asResponse(malformed(undefined)),
    });
    const open = new WeakMap<Duplex, Set<ServerResponse>>();
    const answer: RequestListener = (request, response) => {
      const { socket } = request;
      const responses = open.get(socket) ?? new Set();
      if (!open.has(socket)) socket.once("close", () => closeWaiting(responses));
      open.set(socket, responses.add(response));
      response.once("close", () => responses.delete(response));
      void handle(request, response);
    };
    this.#server = createHttpServer(certificates, answer);
    // Treat a request with an unknown `Expect` header like any other, because the API ignores this header.
    this.#server.on("checkExpectation", answer);
    this.#server.on("clientError", ({ code }: NodeJS.ErrnoException, socket) => {
      // If an earlier request on this connection is being answered, this answer would end up inside that one, so only
      // close the connection.
      const isAnswering = [...(open.get(socket) ?? [])].some(({ headersSent }) => headersSent);
      if (socket.writable && !isAnswering) socket.end(asBytes(malformed(code)), () => socket.destroy());
      else socket.destroy();
    });
    this.#server.requestTimeout = REQUEST_MS;
    this.#server.headersTimeout = HEAD_MS;
    this.#server.keepAliveTimeout = IDLE_MS;
    this.#server.on("connection", (socket: Socket) => {
      this.#sockets.add(socket);
      socket.once("close", () => this.#sockets.delete(socket));
      state.strangers.arrived(socket);
    });
  }

  get address(): Address {
    return this.#address;
  }

  get streams(): StreamCounts {
    return { ...this.#state.streams };
  }

  /** The address as a URL. If the door listens on all addresses of this machine, the host is the loopback address. */
  get url(): string {
    const { host, port } = this.#address;
    const everywhere: Readonly<Record<string, string>> = { "0.0.0.0": "127.0.0.1", "::": "::1" };
    const scheme = this.#certificates === null ? "http" : "https";
    return `${scheme}://${showAddress({ host: everywhere[host] ?? host, port })}`;
  }

  async listen(where: Address | InheritedListener, signal: AbortSignal): Promise<void> {
    this.#address = await listenOn(this.#server, "serve.http", where, signal);
    const { listeners, clock } = this.#state;
    // If no file descriptors are left, accepting a connection fails. Only report this, because the next one may
    // succeed.
    this.#server.on("error", ({ message }) => listeners.onEvent?.({ event: "failed", address: "", detail: message }));
    const { signal: closed } = this.#closed;
    this.#server.on("tlsClientError", ({ message }: Error, socket: Socket) => {
      const detail = `The TLS handshake failed: ${message}.`;
      listeners.onEvent?.({ event: "tls-refused", address: socket.remoteAddress ?? "", detail });
      // No answer can be sent without TLS, and Node.js waits for it to be sent before it closes the connection.
      socket.destroy();
    });
    void this.#recheckTokens();
    if (this.#certificates !== null) {
      void watchCertificates(this.#certificates, {
        clock,
        closed,
        use: (options) => (this.#server as SecureServer).setSecureContext(options),
        report: (event, detail) => listeners.onEvent?.({ event, address: "", detail }),
      });
    }
  }

  /**
   * Refuses new work from now on, and waits for the requests that are being handled. Still answers requests that begin
   * no work, such as probes.
   *
   * @returns how many requests were not done when the time was up
   */
  async drain({ timeout = 0 }: DoorDrain = {}): Promise<{ cut: number }> {
    const state = this.#state;
    state.beginDrain();
    const timeoutMs = parseDuration(timeout, { name: option("timeout"), maxMs: LONGEST_TIMER_MS, orZero: true });
    using limit = deadline(timeoutMs);
    await abortable(state.idle(), limit.signal).catch(() => "the time is up");
    return { cut: state.working };
  }

  /** Drains, cuts the requests that are left, and closes all connections. Sessions and servers stay. */
  async close(request: DoorDrain = {}): Promise<{ cut: number }> {
    this.#closing ??= this.#close(request);
    return await this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #recheckTokens(): Promise<void> {
    const { signal } = this.#closed;
    while (!signal.aborted) {
      await delay(RECHECK_MS, undefined, { signal, ref: false }).catch(() => "closed");
      await this.#state.recheckTokens();
    }
  }

  async #close(request: DoorDrain): Promise<{ cut: number }> {
    const drained = await this.drain(request);
    const closed = stopListening(this.#server);
    this.#state.cut();
    // Wait a moment for the answers to the requests that were cut. Wait no longer, because a client may not read them.
    using grace = deadline(GRACE_MS);
    await abortable(this.#state.idle(), grace.signal).catch(() => "the time is up");
    this.#closed.abort();
    for (const socket of this.#sockets) socket.destroy();
    await closed;
    return drained;
  }
}

function createHttpServer(certificates: DoorCertificates | null, handle: RequestListener): Server | SecureServer {
  const options: ServerOptions = {
    connectionsCheckingInterval: CHECK_MS,
    maxHeaderSize: LONGEST_HEAD,
    // Accept a request without a Host header here, because Node.js would refuse it with an empty answer. `Origins`
    // then refuses it with a problem document.
    requireHostHeader: false,
  };
  if (certificates === null) return createServer(options, handle);
  return createSecureServer({ ...options, ...certificates.options }, handle);
}

/** When a connection closes, closes the answers that were queued behind an earlier one. Node.js does not close them. */
function closeWaiting(responses: Iterable<ServerResponse>): void {
  for (const response of responses)
    if (response.socket === null && !response.writableFinished) response.destroy().emit("close");
}
