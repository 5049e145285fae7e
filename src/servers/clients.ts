import type { CopilotClientOptions } from "@github/copilot-sdk";
import { abortable, deadline } from "../base/clock.js";
import { fleetClosed } from "../base/errors.js";
import type { ServerRecord } from "../base/server.js";
import { type ConnectedClient, connectClient } from "../runtime/client/connect.js";
import { provenEndpoint } from "../runtime/process/probe.js";

/** The options that a caller of the library may set on its SDK client. The fleet decides where the client connects. */
export type ClientOptions = Omit<CopilotClientOptions, "connection">;

const CONNECT_MS = 10_000;
const GOODBYE_MS = 2_000;
/** A connection without a session is closed after this time, in milliseconds, so that an idle server can be stopped. */
const UNUSED_MS = 60_000;

interface Known {
  launchId: string | null;
  connecting: Promise<ConnectedClient>;
}

/** This process's connections, one for each server. A connection opens when it is first needed. */
export class Clients {
  readonly #clients = new Map<string, Known>();
  /** How many sessions use each connection, by server id. */
  readonly #uses = new Map<string, number>();
  /** The ids of the servers whose client the caller of the library has received. These connections stay open. */
  readonly #pinned = new Set<string>();
  #closed = false;

  assertOpen(): void {
    if (this.#closed) throw fleetClosed();
  }

  /**
   * The connection to this launch of the server. The first call opens it. Checks the identity of the server's process
   * before sending the token.
   */
  async to(server: ServerRecord, options: ClientOptions, signal: AbortSignal): Promise<ConnectedClient> {
    this.assertOpen();
    const key = server.id;
    const known = this.#clients.get(key);
    // Do not use a connection to an earlier launch. That launch has ended or soon will.
    if (known?.launchId === server.launchId) return await known.connecting;
    const connecting = this.#connect(server, options, signal);
    this.#clients.set(key, { launchId: server.launchId, connecting });
    const forget = () => {
      if (this.#clients.get(key)?.connecting === connecting) this.#clients.delete(key);
    };
    connecting.then(({ closed }) => closed.then(forget), forget);
    return await connecting;
  }

  /** Keeps the connection to a server until {@link close}, because the caller of the library uses its client. */
  pin(serverId: string): void {
    this.#pinned.add(serverId);
  }

  /**
   * Records that a session uses the connection to a server, until the result is disposed. A minute after the last use
   * has ended, the connection closes, unless it is pinned.
   */
  using(serverId: string): Disposable {
    this.#uses.set(serverId, (this.#uses.get(serverId) ?? 0) + 1);
    return {
      [Symbol.dispose]: () => {
        const left = (this.#uses.get(serverId) ?? 1) - 1;
        if (left > 0) this.#uses.set(serverId, left);
        else this.#uses.delete(serverId);
        if (left <= 0) setTimeout(() => this.#closeUnused(serverId), UNUSED_MS).unref();
      },
    };
  }

  #closeUnused(serverId: string): void {
    const isUsed = this.#uses.has(serverId) || this.#pinned.has(serverId);
    if (!isUsed) void this.close(serverId).catch(() => "it was never open");
  }

  async #connect(server: ServerRecord, options: ClientOptions, signal: AbortSignal): Promise<ConnectedClient> {
    using limit = deadline(CONNECT_MS, signal);
    return await connectClient(provenEndpoint(server), options, limit.signal);
  }

  /** Closes the connection to one server, which then unloads the sessions that only this connection had open. */
  async close(serverId: string): Promise<void> {
    const known = this.#clients.get(serverId);
    this.#clients.delete(serverId);
    this.#pinned.delete(serverId);
    if (known === undefined) return;
    const { client, closed, destroy } = await known.connecting;
    // Limit the wait, because a server that died or hangs does not answer.
    using limit = deadline(GOODBYE_MS);
    await abortable(Promise.race([client.stop(), closed]), limit.signal).catch(() => undefined);
    await client.forceStop();
    destroy();
  }

  async closeAll(): Promise<void> {
    this.#closed = true;
    await Promise.all([...this.#clients.keys()].map((id) => this.close(id)));
  }
}
