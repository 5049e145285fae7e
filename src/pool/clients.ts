import type { CopilotClientOptions } from "@github/copilot-sdk";
import { type ConnectedClient, connectClient } from "../runtime/client/connect.js";
import { abortable, deadline } from "../runtime/deadline.js";
import { provenEndpoint } from "../runtime/probe.js";
import type { ServerRecord } from "../store/store.js";
import { fleetClosed } from "./problems.js";

/** What a caller of the library may set on its client; where it connects is the fleet's business. */
export type ClientOptions = Omit<CopilotClientOptions, "connection">;

const CONNECT_MS = 10_000;
const GOODBYE_MS = 2_000;

interface Known {
  launchId: string | null;
  connecting: Promise<ConnectedClient>;
}

/** This process's connections to servers, one per server: made on demand, forgotten when they end. */
export class Clients {
  readonly #clients = new Map<string, Known>();
  #closed = false;

  /** @throws FleetError `FLEET_CLOSED` after {@link closeAll}. */
  assertOpen(): void {
    if (this.#closed) throw fleetClosed();
  }

  /**
   * The connection to this launch of the server. Its identity is proved before the token goes out.
   *
   * @throws FleetError `FLEET_CLOSED` after {@link closeAll}.
   */
  async to(server: ServerRecord, options: ClientOptions, signal: AbortSignal): Promise<ConnectedClient> {
    this.assertOpen();
    const key = server.id;
    const known = this.#clients.get(key);
    // One to an earlier launch has ended, or is about to, whether this process has heard of it yet or not.
    if (known?.launchId === server.launchId) return await known.connecting;
    const connecting = this.#connect(server, options, signal);
    this.#clients.set(key, { launchId: server.launchId, connecting });
    const forget = () => {
      if (this.#clients.get(key)?.connecting === connecting) this.#clients.delete(key);
    };
    connecting.then(({ closed }) => closed.then(forget), forget);
    return await connecting;
  }

  async #connect(server: ServerRecord, options: ClientOptions, signal: AbortSignal): Promise<ConnectedClient> {
    using limit = deadline(CONNECT_MS, signal);
    return await connectClient(provenEndpoint(server), options, limit.signal);
  }

  /** Closes the connection to one server, if there is one. Its sessions are unloaded, their state stays. */
  async close(serverId: string): Promise<void> {
    const known = this.#clients.get(serverId);
    this.#clients.delete(serverId);
    if (known === undefined) return;
    const { client, closed, destroy } = await known.connecting;
    // A server that died or hangs cannot say goodbye: do not wait for an answer that will not come.
    using limit = deadline(GOODBYE_MS);
    await abortable(Promise.race([client.stop(), closed]), limit.signal).catch(() => undefined);
    await client.forceStop();
    destroy();
  }

  /** Closes all connections, and makes no more. */
  async closeAll(): Promise<void> {
    this.#closed = true;
    await Promise.all([...this.#clients.keys()].map((id) => this.close(id)));
  }
}
