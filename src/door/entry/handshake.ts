import type { Socket } from "node:net";
import { createServer, type Server, type TLSSocket } from "node:tls";
import type { Clock } from "../../base/clock.js";
import { DoorCertificates } from "../../identity/tls/certificates.js";
import { type TlsFiles, watchCertificates } from "../../identity/tls/files.js";
import type { ProtocolError } from "../../runtime/wire/frames.js";
import type { DoorState } from "../state/door-state.js";
import { Reporter } from "../state/report.js";
import { readProxyHeader } from "../wire/client-socket.js";
import { AUTHENTICATION_REQUIRED, errorFrame } from "../wire/refusals.js";
import { HELLO_MS } from "./connection.js";

/** The first byte of every TLS handshake (RFC 8446, section 5.1). */
const HANDSHAKE_RECORD = 0x16;
/** How long a client without TLS may take to read the refusal, in milliseconds. */
const END_MS = 1_000;
const TLS_ONLY = "This front door accepts only TLS.";

/**
 * A connection whose TLS handshake is not complete. With `serve.proxyProtocol`, a proxy has to send its header before
 * the handshake.
 */
export class Handshake {
  readonly isStranger = true;
  readonly isAuthenticating = false;
  /**
   * The client's address, without its port. Until a proxy's header has named the client, this is the proxy's address.
   */
  address: string;
  /** Resolves with the TLS connection; with null if the handshake fails or the connection ends first. Never rejects. */
  readonly secured: Promise<Socket | null>;
  readonly #raw: Socket;
  readonly #server: Server;
  readonly #report: Reporter;
  readonly #areClientsChecked: boolean;
  readonly #clock: Clock;
  readonly #since: number;
  /** Cancels the time limit for the handshake. */
  readonly #cancel: () => void;
  #settle: (socket: Socket | null) => void = () => undefined;
  /** The bytes that arrived before the TLS server took over the connection. */
  #early: Buffer = Buffer.alloc(0);
  #owesHeader: boolean;
  #state: "early" | "shaking" | "over" = "early";

  constructor(raw: Socket, server: Server, door: DoorState, options: { areClientsChecked: boolean }) {
    const { config, listeners, clock } = door;
    this.#raw = raw;
    this.#server = server;
    this.#owesHeader = config.serve.proxyProtocol;
    this.#areClientsChecked = options.areClientsChecked;
    this.address = raw.remoteAddress ?? "unknown";
    this.#report = new Reporter(listeners, this);
    this.secured = new Promise((resolve) => {
      this.#settle = resolve;
    });
    this.#clock = clock;
    this.#since = clock.now();
    this.#cancel = clock.after(HELLO_MS, () => this.fail(new Error("it took too long")));
    raw.on("error", () => undefined); // `close` follows
    raw.on("data", this.#onData);
    raw.once("close", () => this.#onClose());
  }

  /** How long the client may still take to show a token, in milliseconds. */
  get restMs(): number {
    return Math.max(0, HELLO_MS - (this.#clock.now() - this.#since));
  }

  complete(socket: TLSSocket): void {
    this.#over(socket);
  }

  /** @param error an OpenSSL error has its readable text in `reason` */
  fail(error: Error & { reason?: string }): void {
    if (this.#state === "over") return;
    const detail = `The TLS handshake failed: ${error.reason ?? error.message}.`;
    this.#report.event({ event: "tls-refused", detail });
    this.destroy();
  }

  destroy(): void {
    this.#over(null);
    this.#raw.destroy();
  }

  readonly #onData = (chunk: Buffer): void => {
    this.#early = Buffer.concat([this.#early, chunk]);
    try {
      if (this.#owesHeader) {
        const header = readProxyHeader(this.#early);
        if (header === null) return;
        this.address = header.address ?? this.address;
        this.#early = this.#early.subarray(header.length);
        this.#owesHeader = false;
      }
    } catch (error) {
      this.#report.event({ event: "protocol-error", detail: (error as ProtocolError).message });
      this.destroy();
      return;
    }
    if (this.#early.length === 0) return;
    if (this.#early[0] === HANDSHAKE_RECORD) this.#shake();
    else this.#refusePlain();
  };

  #shake(): void {
    this.#state = "shaking";
    this.#raw.off("data", this.#onData);
    this.#raw.pause();
    this.#raw.unshift(this.#early);
    this.#server.emit("connection", this.#raw);
  }

  #refusePlain(): void {
    this.#report.event({
      event: "tls-refused",
      detail: "The client does not use TLS. If it sent a token, revoke the token.",
    });
    this.#over(null);
    // Keep reading, because closing a socket with unread bytes would make the client lose the refusal.
    this.#raw.off("data", this.#onData).resume();
    this.#raw.end(errorFrame(null, AUTHENTICATION_REQUIRED, TLS_ONLY));
    setTimeout(() => this.#raw.destroy(), END_MS).unref();
  }

  #onClose(): void {
    if (this.#state === "shaking") {
      const hint = this.#areClientsChecked
        ? " Its certificate may not be from an authority in serve.tls.clientCa."
        : "";
      this.#report.event({ event: "tls-refused", detail: `The connection ended during the TLS handshake.${hint}` });
    } else if (this.#state === "early") this.#report.event({ event: "closed" });
    this.#over(null);
  }

  #over(socket: Socket | null): void {
    this.#cancel();
    this.#state = "over";
    this.#settle(socket);
  }
}

/** Makes the TLS connections of a front door with `serve.tls`. */
export class TlsEntry {
  readonly #door: DoorState;
  readonly #certificates: DoorCertificates;
  /** This server does not listen. Each {@link Handshake} passes it a connection that the front door has accepted. */
  readonly #server: Server;
  /**
   * The handshakes in progress, by the addresses of both ends of the connection, because Node.js does not reveal which
   * socket is below a TLS socket.
   */
  readonly #open = new Map<string, Handshake>();

  /** @throws FleetError `FLEET_CONFIG_INVALID` when the files cannot be used. */
  constructor(door: DoorState, files: TlsFiles) {
    this.#door = door;
    this.#certificates = new DoorCertificates(files);
    this.#server = createServer(this.#certificates.options);
    this.#server.on("secureConnection", (socket) => {
      const handshake = this.#open.get(endsOf(socket));
      if (handshake === undefined) socket.destroy();
      else handshake.complete(socket);
    });
    this.#server.on("tlsClientError", (error, socket) => this.#open.get(endsOf(socket))?.fail(error));
  }

  /** Begins the handshake of a connection that the door has just accepted. */
  begin(socket: Socket): Handshake {
    const ends = endsOf(socket);
    const { areClientsChecked } = this.#certificates;
    const handshake = new Handshake(socket, this.#server, this.#door, { areClientsChecked });
    this.#open.set(ends, handshake);
    void handshake.secured.then(() => this.#open.delete(ends));
    return handshake;
  }

  get handshakes(): Iterable<Handshake> {
    return this.#open.values();
  }

  /** Reloads the certificates when their files change. Only new connections use the new certificates. Never rejects. */
  async watch(): Promise<void> {
    const { clock, closed, listeners } = this.#door;
    await watchCertificates(this.#certificates, {
      clock,
      closed,
      use: (options) => this.#server.setSecureContext(options),
      report: (event, detail) => listeners.onEvent?.({ event, address: "", detail }),
    });
  }
}

function endsOf({ remoteAddress, remotePort, localAddress }: Socket | TLSSocket): string {
  return `${remoteAddress} ${remotePort} ${localAddress}`;
}
