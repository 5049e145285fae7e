import { createServer, type Server, type Socket } from "node:net";
import { setTimeout as delay, setImmediate as immediate } from "node:timers/promises";
import { abortable, deadline, NEVER } from "../base/clock.js";
import { option } from "../base/errors.js";
import { type Duration, LONGEST_TIMER_MS, parseDuration } from "../base/values/measures.js";
import type { Address } from "../config/rules.js";
import type { Identity } from "../identity/identity.js";
import { doorFiles } from "../identity/tls/certificates.js";
import { checkExposure, checkInherited } from "../identity/tls/exposure.js";
import { type InheritedListener, listenOn, showAddress, stopListening } from "../runtime/launch/listen.js";
import type { Client } from "./client/client.js";
import { Attempts, Connection } from "./entry/connection.js";
import type { HostCalls } from "./entry/control.js";
import type { Handshake, TlsEntry } from "./entry/handshake.js";
import { type DoorContext, DoorState } from "./state/door-state.js";
import { peerLinkId } from "./state/links.js";
import type { DoorListeners } from "./state/report.js";
import { doorDraining } from "./wire/refusals.js";

/**
 * How many connections without a good token may be open. For another one, the door closes an old one: see `#makeRoom`.
 */
const MAX_STRANGERS = 2_048;
/** How often the door checks whether the tokens of connected clients are still valid, in milliseconds. */
const RECHECK_MS = 2_000;

export interface DoorOptions extends DoorListeners {
  /**
   * An address, or the number of an inherited descriptor that already listens. Port 0 means any free port. The process
   * that passes the descriptor (systemd, or a parent) can pass it to the next front door too. Then no connection is
   * refused while that door replaces this one. There is no other way: Node.js 20 has no `SO_REUSEPORT`, and cannot hand
   * a socket to a process that is not its child.
   */
  listen: Address | InheritedListener;
  /** If this signal aborts before the door listens, for example during a DNS lookup, `openFrontDoor` rejects. */
  signal?: AbortSignal;
}

export interface DoorDrain {
  /**
   * How long turns may take to end: a text such as `30s`, or milliseconds. Default: 0, which cuts all turns at once.
   */
  timeout?: Duration;
}

/**
 * Opens the front door: one address to which any Copilot SDK can connect with a user's token, as if it were that user's
 * own server.
 *
 * @throws FleetError `FLEET_ADDRESS_TAKEN` when somebody already listens on the address; `FLEET_ADDRESS_UNUSABLE` when
 * this host does not have the address or this process may not use the port; `FLEET_CONFIG_INVALID` when the files of
 * `serve.tls` cannot be used, or when other machines can reach the address and there is no TLS; the reason of `signal`
 * when that aborts.
 */
export async function openFrontDoor(
  context: DoorContext,
  calls: HostCalls,
  { listen, signal, ...listeners }: DoorOptions,
): Promise<FrontDoor> {
  checkExposure(context.config, listen, { hasPeers: false });
  const state = new DoorState(context, listeners);
  const files = doorFiles(context.config.serve.tls);
  // Load TLS only where it is configured.
  const tls = files === null ? null : new (await import("./entry/handshake.js")).TlsEntry(state, files);
  const door = new FrontDoor(state, calls, tls);
  await door.listen(listen, signal ?? NEVER);
  try {
    if ("fd" in listen) checkInherited(context.config, door.address);
  } catch (error) {
    await door.close();
    throw error;
  }
  return door;
}

/** An open front door. */
export class FrontDoor implements AsyncDisposable {
  readonly #state: DoorState;
  readonly #calls: HostCalls;
  readonly #server: Server;
  readonly #connections = new Set<Connection>();
  /**
   * The connections without a good token, the oldest first. A connection that shows a good token later stays in the set
   * until `#makeRoom` removes it.
   */
  readonly #strangers = new Set<Connection | Handshake>();
  readonly #attempts = new Attempts();
  readonly #revival: Revival;
  /** Null if clients connect without TLS. */
  readonly #tls: TlsEntry | null;
  #address: Address = { host: "", port: 0 };
  #isInherited = false;

  constructor(state: DoorState, calls: HostCalls, tls: TlsEntry | null) {
    this.#state = state;
    this.#calls = calls;
    this.#tls = tls;
    this.#revival = new Revival(state);
    this.#server = createServer((socket) => this.#accept(socket));
  }

  get address(): Address {
    return this.#address;
  }

  /**
   * `host:port`, as the SDK's `RuntimeConnection.forUri` accepts it. If the door listens on all addresses of this
   * machine, the host is the loopback address. With `serve.tls`, an SDK has to connect through a proxy, because it does
   * not support TLS.
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
    return this.#clients().reduce((sum, { state }) => sum + state.inTurns, 0);
  }

  async listen(where: Address | InheritedListener, signal: AbortSignal): Promise<void> {
    this.#isInherited = "fd" in where;
    this.#address = await listenOn(this.#server, "serve.listen", where, signal);
    // The server emits an error if it cannot accept a connection, for example when no file descriptors are left. Only
    // report it, because the door can accept later connections.
    const { listeners } = this.#state;
    this.#server.on("error", ({ message }) => listeners.onEvent?.({ event: "failed", address: "", detail: message }));
    void this.#recheckTokens();
    void this.#tls?.watch();
    this.#revival.start();
  }

  /**
   * Takes no new clients or turns, refuses the prompts that wait, lets running turns end, waits until the clients have
   * the answers to their requests, and disconnects the clients.
   * Sessions and servers stay, with one exception: if a client answers a server's model requests (`requestHandler`),
   * that server ends, because without the client no turn there can end.
   *
   * The address stays taken until {@link close}, and clients that connect are refused. Otherwise, a program of an agent
   * could listen there, and receive the tokens of these clients. An inherited socket is left to the process that opened
   * it, so that the next front door gets these clients.
   *
   * @returns how many turns were cut because the time was up
   * @throws FleetError `FLEET_USAGE_INVALID` when `timeout` is not a duration.
   */
  async drain({ timeout = 0 }: DoorDrain = {}): Promise<{ cut: number }> {
    const timeoutMs = parseDuration(timeout, { name: option("timeout"), maxMs: LONGEST_TIMER_MS, orZero: true });
    const state = this.#state;
    state.draining = true;
    for (const { prompts } of this.#clients()) prompts.cancelAll(doorDraining());
    if (this.#isInherited) this.#server.close();
    if (timeoutMs > 0) {
      using limit = deadline(timeoutMs);
      const settled = [...this.#connections].map(async (connection) => await connection.settled(limit.signal));
      await abortable(Promise.all(settled), limit.signal).catch(() => "the time is up");
    }
    const cut = this.turns;
    state.close();
    await this.#disconnect();
    await Promise.all(state.endings);
    await state.sessions.lastUses.flush();
    return { cut };
  }

  /** Drains as {@link drain} does, and then frees the address. */
  async close(request: DoorDrain = {}): Promise<{ cut: number }> {
    const drained = await this.drain(request);
    const closed = stopListening(this.#server);
    await this.#disconnect();
    await closed;
    return drained;
  }

  /**
   * Disconnects from the servers of this host, but not from the clients. Call this when other hosts may take over this
   * host's sessions. Once this host may have sessions again, the door finds out which host now has each of the clients'
   * sessions, and reopens the session there.
   */
  leaveServers(): void {
    this.#revival.leaveServers();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #clients(): Client[] {
    return [...this.#connections].flatMap(({ client }) => client ?? []);
  }

  async #disconnect(): Promise<void> {
    for (const handshake of this.#tls?.handshakes ?? []) handshake.destroy();
    const closed = [...this.#connections].map(async (connection) => await connection.closed);
    for (const connection of this.#connections) {
      connection.socket.end();
      if (!connection.authenticated) connection.socket.destroy();
    }
    await Promise.all(closed);
  }

  #accept(socket: Socket): void {
    this.#makeRoom();
    if (this.#tls === null) {
      this.#greet(socket);
      return;
    }
    const handshake = this.#tls.begin(socket);
    this.#strangers.add(handshake);
    void handshake.secured.then((secure) => {
      this.#strangers.delete(handshake);
      if (secure !== null) this.#greet(secure, handshake);
    });
  }

  #greet(socket: Socket, secured?: Handshake): void {
    const connection = new Connection(socket, this.#state, this.#attempts, this.#calls, secured);
    this.#connections.add(connection);
    this.#strangers.add(connection);
    void connection.closed.then(() => {
      this.#connections.delete(connection);
      this.#strangers.delete(connection);
    });
  }

  /**
   * Closes the oldest stranger (a connection that has shown no good token) when there are too many. Does not count by
   * address, because all clients behind one proxy share an address.
   */
  #makeRoom(): void {
    if (this.#strangers.size < MAX_STRANGERS) return;
    for (const connection of this.#strangers) if (!connection.isStranger) this.#strangers.delete(connection);
    if (this.#strangers.size < MAX_STRANGERS) return;
    const strangers = [...this.#strangers];
    const silent = strangers.filter(({ isAuthenticating }) => !isAuthenticating);
    // Spare a connection whose token is being looked up, because it may be let in at any moment. But such connections
    // may take up at most half of the room, because strangers could start many slow look-ups.
    const isSilentOver = silent.length > MAX_STRANGERS / 2;
    (isSilentOver ? silent[0] : strangers.find(({ isAuthenticating }) => isAuthenticating))?.destroy();
  }

  /** Ends connections whose token was revoked or has expired. Never rejects. */
  async #recheckTokens(): Promise<void> {
    const { closed, signOn } = this.#state;
    while (!closed.aborted) {
      await delay(RECHECK_MS, undefined, { signal: closed, ref: false }).catch(() => "closed");
      for (const detail of signOn.takeWarnings()) {
        this.#state.listeners.onEvent?.({ event: "failed", address: "", detail });
      }
      const identities = new Map(this.#clients().map(({ state: { identity } }) => [identity.tokenId, identity]));
      for (const identity of identities.values()) {
        if (closed.aborted) return;
        // If the store does not answer, ask it again in the next round.
        const good = await signOn.isStillGood(identity).catch(() => true);
        if (!good) this.#endAllOf(identity);
      }
    }
  }

  #endAllOf({ tokenId, user }: Identity): void {
    for (const connection of this.#connections) {
      if (connection.client?.state.identity.tokenId !== tokenId) continue;
      this.#state.listeners.onEvent?.({ event: "token-refused", address: connection.socket.address, user });
      connection.socket.destroy();
    }
  }
}

/** How often the door checks whether servers to which a connection was lost run again, in milliseconds. */
const SERVERS_POLL_MS = 250;
/**
 * How often the door checks whether the other hosts that clients are connected to still count as alive, in
 * milliseconds.
 */
const HOSTS_POLL_MS = 1_000;

/** How often the door checks whether the servers still have its clients' sessions in memory, in milliseconds. */
const UNLOADS_POLL_MS = 2_000;

/** Reopens the sessions of a door's clients after a server or host has ended, or after a server has unloaded them. */
export class Revival {
  readonly #state: DoorState;
  /**
   * True from the moment when the door disconnects from the servers of this host until this host may have sessions
   * again.
   */
  #hasLeft = false;

  constructor(state: DoorState) {
    this.#state = state;
  }

  start(): void {
    void this.#watchServers();
    void this.#watchUnloads();
    if (this.#state.store.hosts !== null) void this.#watchHosts();
  }

  /** See `FrontDoor.leaveServers`. */
  leaveServers(): void {
    for (const { links } of this.#state.clients) links.leaveServers();
    if (!this.#hasLeft) void this.#awaitTerm();
  }

  /** Reopens the clients' sessions once this host may have sessions again. Never rejects. */
  async #awaitTerm(): Promise<void> {
    const { closed, directory, clients } = this.#state;
    this.#hasLeft = true;
    let isThere = false;
    while (!isThere && !closed.aborted) {
      await this.#pause(SERVERS_POLL_MS);
      // If the store does not answer, ask it again in the next round.
      isThere = await directory.isThere().catch(() => false);
    }
    // Reset `#hasLeft` before the sessions are reopened. If this host loses its term while they are reopened,
    // `leaveServers` must start another wait.
    this.#hasLeft = false;
    for (const client of clients) client.reopen();
  }

  /** Reopens the sessions that clients had open on a lost server, once that server runs again. Never rejects. */
  async #watchServers(): Promise<void> {
    const { closed, lostServers, store } = this.#state;
    const read = async () => (await store.registry.read()).servers;
    while (!closed.aborted) {
      await lostServers.some();
      await this.#pause(SERVERS_POLL_MS);
      // While other hosts may count this host as gone, leave the sessions to `#awaitTerm`. If the registry cannot be
      // read now, the next round tries again.
      const servers = this.#hasLeft ? null : await read().catch(() => null);
      for (const { peer, clients } of lostServers.back(servers)) for (const client of clients) client.reopen(peer.id);
    }
  }

  async #watchUnloads(): Promise<void> {
    const { closed, clients } = this.#state;
    while (!closed.aborted) {
      await this.#pause(UNLOADS_POLL_MS);
      // If this process was suspended, let it first read the events that arrived in that time. Otherwise
      // `noticeUnloads` would treat them as missing.
      await immediate();
      for (const client of clients) client.noticeUnloads();
    }
  }

  /**
   * Reopens the sessions of lost hosts once these sessions are available again. Also disconnects from hosts that the
   * directory counts as gone, because a host that falls silent does not close its connections. Never rejects.
   */
  async #watchHosts(): Promise<void> {
    const { closed, directory, lostHosts } = this.#state;
    while (!closed.aborted) {
      await this.#pause(HOSTS_POLL_MS);
      const connected = [...this.#state.clients].filter(({ links }) => links.hasPeers);
      if (connected.length === 0 && !lostHosts.any) continue;
      // If the store does not answer, ask it again in the next round.
      const hosts = await directory.list().catch(() => null);
      if (hosts === null) continue;
      const there = new Set(hosts.filter(({ gone }) => !gone).map(peerLinkId));
      for (const { links } of connected) links.hangUp(there);
      for (const { peer, clients } of lostHosts.back(hosts))
        for (const client of clients) client.reopen(peerLinkId(peer));
    }
  }

  /** Resolves after `ms` milliseconds, or earlier when the door closes. */
  async #pause(ms: number): Promise<void> {
    await delay(ms, undefined, { signal: this.#state.closed, ref: false }).catch(() => "closed");
  }
}
