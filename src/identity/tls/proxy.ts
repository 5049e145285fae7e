import { randomBytes } from "node:crypto";
import { createServer, type Server, type Socket } from "node:net";
import { deadline } from "../../base/clock.js";
import { FleetError, option, quote } from "../../base/errors.js";
import { isLoopback } from "../../base/values/network.js";
import { addressFault } from "../../base/values/text.js";
import { type Address, parseAddress } from "../../config/rules.js";
import { listenOn, showAddress, stopListening } from "../../runtime/launch/listen.js";
import { connectSecurely, splice, swapToken, type TokenSwap } from "../../runtime/wire/secure.js";
import { readPeerTls } from "./exposure.js";
import type { TlsFiles } from "./files.js";

/** How long it may take to connect to the front door, with the TLS handshake, in milliseconds. */
const CONNECT_MS = 10_000;

/** Something that happened at a proxy, for a log. */
export interface ProxyEvent {
  event: "connected" | "closed" | "refused" | "failed";
  detail?: string;
}

export interface ProxyOptions {
  /** `host:port` of a front door with TLS. */
  to: string;
  /** A loopback address. Default: any free port of 127.0.0.1. */
  listen?: string;
  /**
   * A token for the front door, which clients need not know: they show the proxy's own `token` instead. Without this
   * option, clients show their own tokens for the front door.
   */
  token?: string;
  /** The file with the authorities of the front door. Default: those that Node.js trusts. */
  ca?: string;
  /** The file with the certificate to show at the front door. `key` is the file with its key. */
  cert?: string;
  key?: string;
  /** Must not throw. */
  onEvent?: (event: ProxyEvent) => void;
}

/**
 * Opens a loopback address for SDKs, which cannot speak TLS, and passes their connections on to a front door with TLS.
 * The files are read again for each connection.
 *
 * @throws FleetError `FLEET_USAGE_INVALID` when an address is not allowed; `FLEET_CONFIG_INVALID` when a file cannot be
 * used; `FLEET_ADDRESS_TAKEN` or `FLEET_ADDRESS_UNUSABLE` when the proxy cannot listen.
 */
export async function openProxy(options: ProxyOptions): Promise<DoorProxy> {
  const to = readAddress("to", options.to, "fleet.example:4300");
  const listen = readAddress("listen", options.listen ?? "127.0.0.1:0", "127.0.0.1:4301");
  if (!isLoopback(listen)) {
    const message = `${option("listen")} is ${quote(options.listen)}, which other machines can reach. Allowed: a loopback address, because connections to the proxy have no TLS`;
    throw new FleetError("FLEET_USAGE_INVALID", message, { suggestions: [`Use ${option("listen", "127.0.0.1:0")}.`] });
  }
  const proxy = new DoorProxy(to, options);
  await proxy.listen(listen);
  return proxy;
}

/** An open proxy. */
export class DoorProxy implements AsyncDisposable {
  /** `host:port` of the front door. */
  readonly to: string;
  /** The token that clients have to show to this proxy. Null if they show their own tokens for the front door. */
  readonly token: string | null;
  readonly #door: Address;
  readonly #files: TlsFiles;
  readonly #swap: TokenSwap | null;
  readonly #onEvent: ProxyOptions["onEvent"];
  readonly #server: Server;
  readonly #clients = new Set<Socket>();
  readonly #closed = new AbortController();
  #url = "";

  constructor(door: Address, { token, ca, cert, key, onEvent }: ProxyOptions) {
    this.#door = door;
    this.to = showAddress(door);
    this.token = token === undefined ? null : `cfp_${randomBytes(32).toString("base64url")}`;
    this.#swap = token === undefined || this.token === null ? null : { local: this.token, remote: token };
    const named = (name: string, path: string | undefined) =>
      path === undefined ? null : { name: option(name), path };
    this.#files = { ca: named("ca", ca), cert: named("cert", cert), key: named("key", key) };
    this.#onEvent = onEvent;
    this.#server = createServer({ allowHalfOpen: true, noDelay: true }, (client) => void this.#serve(client));
  }

  /** The address of this proxy as `host:port`, for the SDK's `RuntimeConnection.forUri`. */
  get url(): string {
    return this.#url;
  }

  async listen(address: Address): Promise<void> {
    readPeerTls(this.#files); // so that a wrong file is an error now, and not at the first connection
    this.#url = showAddress(await listenOn(this.#server, "proxy", address, this.#closed.signal));
    this.#server.on("error", ({ message }) => this.#onEvent?.({ event: "failed", detail: message }));
  }

  /** Disconnects all clients. */
  async close(): Promise<void> {
    this.#closed.abort(new Error("the proxy is closed"));
    if (this.#server.listening) {
      const closed = stopListening(this.#server);
      for (const client of this.#clients) client.destroy();
      await closed;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Never rejects. */
  async #serve(client: Socket): Promise<void> {
    this.#clients.add(client);
    client.on("error", () => undefined); // `close` follows
    client.once("close", () => this.#clients.delete(client));
    try {
      const hello = this.#swap === null ? null : await swapToken(client, this.#swap);
      if (this.#swap !== null && hello === null) {
        this.#onEvent?.({ event: "refused", detail: "The client did not show the token of this proxy." });
        return;
      }
      using limit = deadline(CONNECT_MS, this.#closed.signal);
      const door = await connectSecurely(
        { address: this.#door.host, port: this.#door.port },
        readPeerTls(this.#files),
        limit.signal,
      );
      this.#onEvent?.({ event: "connected" });
      if (hello !== null) door.write(hello);
      await splice(client, door);
      this.#onEvent?.({ event: "closed" });
    } catch (error) {
      client.destroy();
      const reason = error instanceof Error ? error.message : String(error);
      this.#onEvent?.({ event: "failed", detail: `The front door ${this.to} cannot be used: ${reason}` });
    }
  }
}

function readAddress(name: string, given: unknown, example: string): Address {
  const text = String(given).replace(/^tls:\/\//, "");
  const address = parseAddress(text);
  if (address !== null && (name === "listen" || address.port !== 0)) return address;
  const fault = address === null ? addressFault(text) : "which has the port 0";
  throw new FleetError(
    "FLEET_USAGE_INVALID",
    `${option(name)} is ${quote(text)}, ${fault}. Allowed: host:port, such as ${example}`,
    {
      suggestions: [`Use ${option(name, example)}.`],
    },
  );
}
