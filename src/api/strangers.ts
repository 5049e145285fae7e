import type { Socket } from "node:net";

/** The largest number of open connections without a running request of a signed-on user. One more closes the oldest. */
const MOST = 2_048;

/** A connection on which requests of a signed-on user run, and how many of them run. */
interface Known {
  socket: Socket;
  requests: number;
}

/**
 * Limits the number of strangers. A stranger is a connection that has shown no valid token, or an idle connection of a
 * user, because one user could otherwise keep any number of idle connections open. Identifies a connection by its
 * remote address and port, because Node.js does not link a TLS socket to the socket below it.
 */
export class Strangers {
  readonly #sockets = new Map<string, Socket>();
  readonly #known = new Map<string, Known>();
  /**
   * The connections whose tokens are being looked up. They are not closed, because they may be admitted at any moment.
   */
  readonly #held = new Set<string>();
  readonly #most: number;

  constructor(most = MOST) {
    this.#most = most;
  }

  arrived(socket: Socket): void {
    if (this.#sockets.size >= this.#most) this.#closeOldest();
    const name = nameOf(socket);
    this.#sockets.set(name, socket);
    socket.on("close", () => {
      if (this.#sockets.get(name) === socket) this.#sockets.delete(name);
      if (this.#known.get(name)?.socket === socket) this.#known.delete(name);
    });
  }

  /** Keeps a connection from being closed until the returned object is disposed. */
  hold(socket: Socket): Disposable {
    const name = nameOf(socket);
    this.#held.add(name);
    return { [Symbol.dispose]: () => void this.#held.delete(name) };
  }

  /**
   * Call this when a user has signed on with a request on this connection, and dispose the returned object when the
   * request is answered. As long as such a request runs, the connection does not count as a stranger and is not closed.
   */
  admit(socket: Socket): Disposable {
    const name = nameOf(socket);
    const stranger = this.#sockets.get(name);
    if (stranger !== undefined) this.#known.set(name, { socket: stranger, requests: 0 });
    this.#sockets.delete(name);
    const known = this.#known.get(name);
    if (known !== undefined) known.requests++;
    return {
      [Symbol.dispose]: () => {
        if (known === undefined || --known.requests > 0 || this.#known.get(name) !== known) return;
        this.#known.delete(name);
        this.#sockets.set(name, known.socket);
      },
    };
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
