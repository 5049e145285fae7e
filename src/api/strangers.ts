import type { Socket } from "node:net";

/** How many connections without a good token may be open. When another one arrives, the oldest of them is closed. */
const MOST = 2_048;

/**
 * The connections that have shown no good token. By the ends of their connections, because Node.js does not connect a TLS
 * socket with the socket below it.
 */
export class Strangers {
  readonly #sockets = new Map<string, Socket>();
  /** The connections whose tokens are being looked up. They may be let in at any moment. */
  readonly #held = new Set<string>();
  readonly #most: number;

  constructor(most = MOST) {
    this.#most = most;
  }

  arrived(socket: Socket): void {
    if (this.#sockets.size >= this.#most) this.#closeOldest();
    const name = nameOf(socket);
    this.#sockets.set(name, socket);
    socket.once("close", () => {
      if (this.#sockets.get(name) === socket) this.#sockets.delete(name);
    });
  }

  /** Spares a connection until the returned object is disposed. */
  hold(socket: Socket): Disposable {
    const name = nameOf(socket);
    this.#held.add(name);
    return { [Symbol.dispose]: () => void this.#held.delete(name) };
  }

  admit(socket: Socket): void {
    this.#sockets.delete(nameOf(socket));
  }

  #closeOldest(): void {
    const [name] = [...this.#sockets.keys()].filter((each) => !this.#held.has(each));
    if (name === undefined) return;
    this.#sockets.get(name)?.destroy();
    this.#sockets.delete(name);
  }
}

function nameOf({ remoteAddress, remotePort }: Socket): string {
  return `${remoteAddress} ${remotePort}`;
}
