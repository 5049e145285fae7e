import { createServer, type Server, type Socket } from "node:net";
import { setTimeout as delay, setImmediate as immediate } from "node:timers/promises";
import type { Address } from "../config/rules.js";
import { type Duration, LONGEST_TIMER_MS, parseDuration } from "../config/values/duration.js";
import { option } from "../errors.js";
import { isTokenGood, type TokenHolder } from "../identity/tokens.js";
import type { ServerRecord } from "../model/server.js";
import { isRunning } from "../pool/server.js";
import { abortable, deadline, NEVER } from "../runtime/deadline.js";
import { type InheritedListener, listenOn, showAddress } from "../runtime/launch/listen.js";
import type { Client } from "./client/client.js";
import { Attempts } from "./entry/attempts.js";
import { Connection, type ConnectionServices } from "./entry/connection.js";
import type { DoorOwner, Together } from "./state/door/door-state.js";
import { LostHosts } from "./state/door/lost-hosts.js";
import { Pace } from "./state/door/pace.js";
import type { DoorListeners } from "./state/door/report.js";
import { failure } from "./state/door/report.js";
import { SessionRequests } from "./state/door/server-questions.js";
import { Shares } from "./state/door/shares.js";
import { peerLinkId } from "./state/links.js";
import { doorDraining } from "./wire/refusals.js";

/** How many connections without a good token may be open. When another one arrives, the door closes the oldest. */
const MAX_STRANGERS = 2_048;
/** How long a connection outlives its token, in milliseconds. */
const RECHECK_MS = 2_000;
/**
 * How long the door waits for a lost server to run again, and how often it checks, in milliseconds. It waits so that
 * clients that only listen get the server's events again.
 */
const REVIVAL_MS = 60_000;
const REVIVAL_POLL_MS = 250;
/** How long a process may outlive its connection, in milliseconds. If it runs longer, only the connection was lost. */
const ENDING_MS = 1_000;
/** How often the door checks whether the other hosts that clients are connected to are still there, in milliseconds. */
const HOSTS_POLL_MS = 1_000;

export interface DoorOptions extends DoorListeners {
  /**
   * An address, in which port 0 means any free port, or the number of an inherited descriptor that already listens. The
   * holder of such a descriptor (systemd's `.socket` unit, a parent) can pass it to the next front door, so no connection
   * is refused in between.
   */
  listen: Address | InheritedListener;
  /** Ends the wait for the address. */
  signal?: AbortSignal;
}

export interface DoorDrain {
  /** How long turns may take to end: a text such as `30s`, or milliseconds. Default: 0, which cuts them at once. */
  timeout?: Duration;
  /** @deprecated The same as `timeout`, in milliseconds. */
  timeoutMs?: number;
}

/**
 * Opens the front door: one address to which any Copilot SDK can connect with a user's token, as if it were that user's own
 * server.
 *
 * @throws FleetError `FLEET_ADDRESS_TAKEN` when somebody already listens on the address, `FLEET_ADDRESS_UNUSABLE` when this
 * host does not have the address or this user may not have the port; the signal's reason if it aborts first.
 */
export async function openFrontDoor(context: DoorOwner, options: DoorOptions): Promise<FrontDoor> {
  const door = new FrontDoor(context, options);
  await door.listen(options.listen, options.signal ?? NEVER);
  return door;
}

/** An open front door. */
export class FrontDoor implements AsyncDisposable {
  readonly #services: ConnectionServices;
  readonly #server: Server;
  readonly #connections = new Set<Connection>();
  /** The connections that were strangers at the last check, the oldest first. */
  readonly #strangers = new Set<Connection>();
  readonly #starting = new Map<string, Promise<ServerRecord>>();
  /** Servers that are ending because their clients have gone. */
  readonly #endings = new Set<Promise<void>>();
  readonly #awaited = new Map<string, Set<Client>>();
  readonly #lostHosts: LostHosts<Client>;
  readonly #pace = new Pace();
  readonly #closed = new AbortController();
  #draining = false;
  /** Set by `leaveServers`, until this host may have sessions again. */
  #withoutServers: Promise<void> | undefined;
  #address: Address = { host: "", port: 0 };

  constructor(context: DoorOwner, { onRequest, onEvent }: DoorListeners) {
    const { directory, config } = context;
    this.#lostHosts = new LostHosts({ takenOver: directory.isShared, ttlMs: config.host.ttlMs, waitMs: REVIVAL_MS });
    this.#services = {
      ...context,
      attempts: new Attempts(),
      shares: new Shares(config.limits),
      together: async (serverId, signal, start) => await this.#together(serverId, signal, start),
      awaitServer: (server, client) => this.#awaitServer(server, client),
      awaitHost: (host, client) => this.#lostHosts.await(host, client),
      endServer: (server, client) => {
        const ending = this.#endServer(server, client).finally(() => void this.#endings.delete(ending));
        this.#endings.add(ending);
      },
      opened: (sessionId, client) => this.#tellOthers(sessionId, client),
      sessionRequests: new SessionRequests(),
      bringers: (sessionId, tool, except) =>
        this.#clients()
          .filter((client) => client !== except && client.brings(sessionId, tool))
          .map(({ holder }) => holder.user),
      pace: async () => await this.#pace.pass(),
      isDraining: () => this.#draining,
      onRequest: onRequest ?? (() => undefined),
      onEvent: onEvent ?? (() => undefined),
    };
    this.#server = createServer({ pauseOnConnect: false }, (socket) => this.#accept(socket));
  }

  /** The address that the door listens on. */
  get address(): Address {
    return this.#address;
  }

  /**
   * `host:port`, as the SDK's `RuntimeConnection.forUri` takes it. If the door listens on all addresses of this machine, the
   * host is the loopback address.
   */
  get url(): string {
    const { host, port } = this.#address;
    const everywhere: Readonly<Record<string, string>> = { "0.0.0.0": "127.0.0.1", "::": "::1" };
    return showAddress({ host: everywhere[host] ?? host, port });
  }

  /** How many connected clients have shown a good token. */
  get clients(): number {
    return [...this.#connections].filter(({ authenticated, client }) => authenticated && client !== undefined).length;
  }

  /** How many turns are running or waiting. */
  get turns(): number {
    return this.#clients().reduce((sum, { inTurns }) => sum + inTurns, 0);
  }

  async listen(where: Address | InheritedListener, signal: AbortSignal): Promise<void> {
    this.#address = await listenOn(this.#server, "serve.listen", where, signal);
    // Accepting fails while no file descriptors are left. The next connection may succeed, so only report the error.
    this.#server.on("error", (error) =>
      this.#services.onEvent({ event: "failed", address: "", detail: error.message }),
    );
    void this.#recheckTokens();
    if (this.#services.store.hosts !== null) void this.#watchHosts();
  }

  /**
   * Closes the door: takes no new connections and no new turns, refuses the prompts that wait, lets the running turns
   * end, and hangs up. Sessions stay, and so do servers, except those that end with a client.
   *
   * @returns how many turns were cut because the time was up
   * @throws FleetError `FLEET_DURATION_INVALID` when `timeout` is not a duration.
   */
  async close({ timeout, timeoutMs: givenMs = 0 }: DoorDrain = {}): Promise<{ cut: number }> {
    const name = option("timeout");
    const timeoutMs =
      timeout === undefined ? givenMs : parseDuration(timeout, { name, maxMs: LONGEST_TIMER_MS, orZero: true });
    this.#draining = true;
    for (const { turns } of this.#clients()) turns.cancelAll(doorDraining());
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    if (timeoutMs > 0) {
      using limit = deadline(timeoutMs);
      const settled = Promise.all(this.#clients().map(async (client) => await client.settled(limit.signal)));
      await abortable(settled, limit.signal).catch(() => "the time is up");
    }
    const cut = this.turns;
    this.#closed.abort();
    for (const connection of this.#connections) connection.end();
    for (const connection of this.#connections) if (!connection.authenticated) connection.destroy();
    await closed;
    // The server can close before the `close` events of its last connections.
    while (this.#connections.size > 0) await immediate();
    await Promise.all(this.#endings);
    return { cut };
  }

  /**
   * Hangs up on the servers of this host but not on the clients. Call this when other hosts may take this host's
   * sessions. Once this host may have sessions again, the door reopens what the clients had open, here or on the host
   * that has it then.
   */
  leaveServers(): void {
    for (const client of this.#clients()) client.leaveServers();
    this.#withoutServers ??= this.#untilTerm();
  }

  /** Never rejects. */
  async #untilTerm(): Promise<void> {
    const { signal } = this.#closed;
    let isThere = false;
    while (!isThere && !signal.aborted) {
      await delay(REVIVAL_POLL_MS, undefined, { signal, ref: false }).catch(() => "closed");
      // If the store does not answer, ask it again in the next round.
      isThere = await this.#services.directory.isThere().catch(() => false);
    }
    // Reset this before the clients are attached again. If this host loses its term during that, `leaveServers` must
    // start another wait.
    this.#withoutServers = undefined;
    await Promise.all(this.#clients().map(async (client) => await client.reattach()));
  }

  /**
   * Hangs up on hosts that have gone, because a host that falls silent does not close its connections. Reopens the sessions
   * that clients had open on a lost host, once they are available again. Never rejects.
   */
  async #watchHosts(): Promise<void> {
    const { signal } = this.#closed;
    const { directory } = this.#services;
    while (!signal.aborted) {
      await delay(HOSTS_POLL_MS, undefined, { signal, ref: false }).catch(() => "closed");
      const connected = this.#clients().filter(({ hasPeers }) => hasPeers);
      if (connected.length === 0 && !this.#lostHosts.any) continue;
      // If the store does not answer, ask it again in the next round.
      const hosts = await directory.list().catch(() => null);
      if (hosts === null) continue;
      const there = new Set(hosts.filter(({ gone }) => !gone).map(peerLinkId));
      for (const client of connected) client.hangUp(there);
      for (const { host, clients } of this.#lostHosts.back(hosts)) {
        for (const client of clients) void client.reattach(peerLinkId(host));
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #clients(): Client[] {
    return [...this.#connections].flatMap(({ client }) => client ?? []);
  }

  #accept(socket: Socket): void {
    this.#makeRoom();
    const connection = new Connection(socket, this.#services, () => {
      this.#connections.delete(connection);
      this.#strangers.delete(connection);
    });
    this.#connections.add(connection);
    this.#strangers.add(connection);
  }

  /**
   * Closes the oldest stranger when there are too many. Does not count strangers by address, because all clients behind
   * one proxy share an address. A good client shows its token at once, so it is a stranger only for a moment.
   */
  #makeRoom(): void {
    if (this.#strangers.size < MAX_STRANGERS) return;
    for (const connection of this.#strangers) if (!connection.isStranger) this.#strangers.delete(connection);
    if (this.#strangers.size < MAX_STRANGERS) return;
    const strangers = [...this.#strangers];
    // Spare a connection whose token is being looked up, because it may be let in at any moment.
    (strangers.find(({ isAuthenticating }) => !isAuthenticating) ?? strangers[0])?.destroy();
  }

  async #together(...[serverId, signal, start]: Parameters<Together>): Promise<ServerRecord> {
    signal.throwIfAborted();
    let starting = this.#starting.get(serverId);
    if (starting === undefined) {
      starting = start(this.#closed.signal).finally(() => void this.#starting.delete(serverId));
      this.#starting.set(serverId, starting);
    }
    return await abortable(starting, signal);
  }

  /** `opener` has loaded the session. Other clients that had it open before its eviction get its events again, too. */
  #tellOthers(sessionId: string, opener: Client): void {
    for (const client of this.#clients()) if (client !== opener) void client.follow(sessionId);
  }

  #awaitServer(server: ServerRecord, client: Client): void {
    const waiting = this.#awaited.get(server.id);
    if (waiting !== undefined) {
      waiting.add(client);
      return;
    }
    this.#awaited.set(server.id, new Set([client]));
    void this.#revive(server);
  }

  /** Never rejects. */
  async #revive(lost: ServerRecord): Promise<void> {
    const lostAt = performance.now();
    const elapsedMs = () => performance.now() - lostAt;
    let running = false;
    while (!running && elapsedMs() < REVIVAL_MS && !this.#closed.signal.aborted) {
      await delay(REVIVAL_POLL_MS, undefined, { signal: this.#closed.signal, ref: false }).catch(() => "closed");
      // While this host may count as gone, `#untilTerm` brings the clients back.
      if (this.#withoutServers === undefined) running = await this.#runs(lost, elapsedMs() > ENDING_MS);
    }
    const waiting = this.#awaited.get(lost.id) ?? new Set();
    this.#awaited.delete(lost.id);
    if (!running) return;
    await Promise.all([...waiting].map(async (client) => await client.reattach(lost.id)));
  }

  /** Whether the server runs again, in another launch. With `still`, also if it has not ended. */
  async #runs({ id, launchId }: ServerRecord, still: boolean): Promise<boolean> {
    try {
      const server = (await this.#services.store.registry.read()).servers[id];
      return server?.state === "ready" && (still || server.launchId !== launchId) && isRunning(server);
    } catch {
      return false; // the registry cannot be read now; the next round tries again
    }
  }

  /** Never rejects. */
  async #endServer({ id, launchId }: ServerRecord, client: Client): Promise<void> {
    const { pool, store } = this.#services;
    try {
      const server = (await store.registry.read()).servers[id];
      // The client may have gone because this launch has ended.
      if (server === undefined || server.launchId !== launchId || !isRunning(server)) return;
      client.tell({ event: "server-ended", detail: id });
      await pool.stop(id, { drainTimeoutMs: 0, force: false, signal: NEVER, stays: true });
    } catch (error) {
      client.tell({ event: "failed", ...failure(error, `the end of ${id}`) });
    }
  }

  /** Ends connections whose token was revoked or has expired. Never rejects. */
  async #recheckTokens(): Promise<void> {
    const { signal } = this.#closed;
    while (!signal.aborted) {
      await delay(RECHECK_MS, undefined, { signal, ref: false }).catch(() => "closed");
      const holders = new Map(this.#clients().map(({ holder }) => [holder.tokenId, holder]));
      for (const holder of holders.values()) {
        if (signal.aborted) return;
        // If the store does not answer, ask it again in the next round.
        const good = await isTokenGood(this.#services.store, holder).catch(() => true);
        if (!good) this.#endAllOf(holder);
      }
    }
  }

  #endAllOf({ tokenId, user }: TokenHolder): void {
    for (const connection of this.#connections) {
      if (connection.client?.holder.tokenId !== tokenId) continue;
      this.#services.onEvent({ event: "token-refused", address: connection.address, user });
      connection.destroy();
    }
  }
}
