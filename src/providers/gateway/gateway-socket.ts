import { randomInt } from "node:crypto";
import { once } from "node:events";
import { closeSync, constants, openSync, readdirSync, rmSync, statSync } from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { systemCode } from "../../base/errors.js";
import { GATEWAY_END, gatewayAddress, WAY_OUT_PORT } from "../../base/sandbox.js";
import { system } from "../../base/system/system.js";

/**
 * The age in milliseconds above which a socket that nobody serves belongs to a dead process. A younger socket may
 * belong to a process that is about to serve it.
 */
const LEFT_BEHIND_MS = 60_000;
const ATTEMPTS = 16;

/**
 * The model gateway's Unix socket in the network folder, for servers whose network is restricted. Such a server reaches
 * the socket through an address of its network namespace.
 */
export class GatewaySocket {
  /** The address and port in a server's namespace at which the server reaches the socket. */
  readonly host: string;
  readonly #server: Server;
  readonly #connections = new Set<Socket>();
  readonly #fd: number;

  private constructor(name: string, server: Server, fd: number) {
    this.host = `${gatewayAddress(name)}:${WAY_OUT_PORT}`;
    this.#server = server;
    this.#fd = fd;
  }

  /** @param accept takes over each connection */
  static async open(folder: string, accept: (connection: Socket) => void): Promise<GatewaySocket> {
    await removeLeftBehind(folder);
    // The path of a Unix socket may have at most 107 bytes, and the folder's path may be longer. So open the folder and
    // use the short path of its descriptor. Close the descriptor after the server, because the closing server removes
    // the socket by this path.
    const fd = openSync(folder, constants.O_RDONLY | constants.O_DIRECTORY);
    for (let attempt = 1; ; attempt++) {
      const name = `${randomInt(1, 255)}.${randomInt(256)}${GATEWAY_END}`;
      // As in an HTTP server, the connection stays open for the answer after the other side has ended its request.
      const server = createServer({ allowHalfOpen: true });
      try {
        server.listen(join(system().files.pathOf(fd), name));
        await once(server, "listening");
      } catch (error) {
        if (systemCode(error) === "EADDRINUSE" && attempt < ATTEMPTS) continue;
        closeSync(fd);
        throw error;
      }
      const opened = new GatewaySocket(name, server, fd);
      server.on("connection", (connection) => {
        opened.#connections.add(connection);
        connection.once("close", () => opened.#connections.delete(connection));
        accept(connection);
      });
      return opened;
    }
  }

  /** Removes the socket and cuts its connections. May be called twice. */
  async close(): Promise<void> {
    if (!this.#server.listening) return;
    const closed = once(this.#server, "close");
    this.#server.close();
    for (const connection of this.#connections) connection.destroy();
    await closed;
    closeSync(this.#fd);
  }
}

/** Removes the sockets of gateways whose processes have died. */
async function removeLeftBehind(folder: string): Promise<void> {
  const fd = openSync(folder, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    const names = readdirSync(folder).filter((name) => /^\d+\.\d+\.\d+$/.test(name));
    await Promise.all(names.map(async (name) => await removeIfLeft(join(system().files.pathOf(fd), name))));
  } finally {
    closeSync(fd);
  }
}

async function removeIfLeft(path: string): Promise<void> {
  try {
    if (Date.now() - statSync(path).mtimeMs < LEFT_BEHIND_MS) return;
    const socket = connect(path);
    await once(socket, "connect").finally(() => socket.destroy());
  } catch (error) {
    if (systemCode(error) === "ECONNREFUSED") rmSync(path, { force: true });
    else if (systemCode(error) === undefined) throw error;
  }
}
