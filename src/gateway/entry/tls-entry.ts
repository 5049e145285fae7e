import type { Socket } from "node:net";
import { createServer, type Server, type TLSSocket } from "node:tls";
import { DoorCertificates } from "../../identity/tls/certificates.js";
import type { TlsFiles } from "../../identity/tls/files.js";
import { watchCertificates } from "../../identity/tls/watch.js";
import type { DoorState } from "../state/door/door-state.js";
import { Handshake } from "./handshake.js";

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
