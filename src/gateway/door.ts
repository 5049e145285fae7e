import { createServer, type Server, type Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { type Duration, LONGEST_TIMER_MS, parseDuration } from "../config/duration.js";
import type { Address } from "../config/rules.js";
import { option } from "../errors.js";
import { isRunning } from "../pool/server.js";
import { abortable, deadline } from "../runtime/deadline.js";
import { type InheritedListener, listenOn, showAddress } from "../runtime/listen.js";
import type { ServerRecord } from "../store/store.js";
import { Attempts } from "./attempts.js";
import type { Client } from "./client.js";
import { Connection, type ConnectionServices } from "./connection.js";
import type { DoorListeners, DoorOwner, Together } from "./context.js";
import { peerLinkId } from "./links.js";
import { LostHosts } from "./lost-hosts.js";
import { Pace } from "./pace.js";
import { doorDraining } from "./refusals.js";
import { SessionRequests } from "./session-requests.js";
import { Shares } from "./shares.js";
import { isTokenGood, type TokenHolder } from "./tokens.js";

/** How many connections may be open that have not shown a good token. One more, and the oldest of them is closed. */
const MAX_STRANGERS = 2_048;
/** How long a connection outlives its token, in milliseconds. */
const RECHECK_MS = 2_000;
/** How long a server is waited for after its end, so that clients that only listen go on hearing, and how it is looked for. */
const REVIVAL_MS = 60_000;
const REVIVAL_POLL_MS = 250;
/** How long a process may take to end after its connections have: one that runs longer has lost the connection alone. */
const ENDING_MS = 1_000;
/** How often it is looked whether the other hosts that clients are connected to are there yet, in milliseconds. */
const HOSTS_POLL_MS = 1_000;

export interface DoorOptions extends DoorListeners {
  /**
   * Port 0: any free one. Or the number of an inherited descriptor that listens already: whoever holds that (systemd's
   * `.socket` unit, a parent) can hand it to the next front door, and no connection is refused in between.
   */
  listen: Address | InheritedListener;
  /** Gives up the wait for the address. */
  signal?: AbortSignal;
}

const NEVER = new AbortController().signal;

export interface DoorDrain {
  /** How long turns may take to end, such as `30s`, or in milliseconds. Default: 0, which cuts them. */
  timeout?: Duration;
  /** @deprecated The same as `timeout`, in milliseconds. */
  timeoutMs?: number;
}

/**
 * Opens the front door: one address at which any Copilot SDK is served with a user's token, as if it were that user's own
 * server.
 *
 * @throws FleetError `FLEET_ADDRESS_TAKEN`, `FLEET_ADDRESS_UNUSABLE` when the address cannot be listened on.
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
  /** Those that were strangers when they were looked at last, the oldest first. */
  readonly #strangers = new Set<Connection>();
  readonly #starting = new Map<string, Promise<ServerRecord>>();
  readonly #awaited = new Map<string, Set<Client>>();
  readonly #lostHosts: LostHosts<Client>;
  readonly #pace = new Pace();
  readonly #closed = new AbortController();
  #draining = false;
  /** Until this host is there again for the others. */
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

  /** Where it listens. */
  get address(): Address {
    return this.#address;
  }

  /**
   * `host:port`, as the SDK's `RuntimeConnection.forUri` takes it. For a door on all addresses of this machine it has the
   * loopback address.
   */
  get url(): string {
    const { host, port } = this.#address;
    const everywhere: Readonly<Record<string, string>> = { "0.0.0.0": "127.0.0.1", "::": "::1" };
    return showAddress({ host: everywhere[host] ?? host, port });
  }

  /** How many clients are connected that have shown their token. */
  get clients(): number {
    return [...this.#connections].filter(({ authenticated, client }) => authenticated && client !== undefined).length;
  }

  /** How many turns are under way or waited for. */
  get turns(): number {
    return this.#clients().reduce((sum, { inTurns }) => sum + inTurns, 0);
  }

  async listen(where: Address | InheritedListener, signal: AbortSignal): Promise<void> {
    this.#address = await listenOn(this.#server, "serve.listen", where, signal);
    // Accepting fails while there are no descriptors left: the next connection may find one.
    this.#server.on("error", (error) =>
      this.#services.onEvent({ event: "failed", address: "", detail: error.message }),
    );
    void this.#recheckTokens();
    if (this.#services.store.hosts !== null) void this.#watchHosts();
  }

  /**
   * Closes the door: takes no new connections and no new turns, refuses the prompts that wait, lets the turns under way end,
   * hangs up. Sessions and servers stay.
   *
   * @returns how many turns were cut since the time was up.
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
    return { cut };
  }

  /**
   * Other hosts may take the sessions of this one from now on: nothing more is said to its servers, and clients stay. What
   * they had open is opened again, here or where it is then, when this host is there again.
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
      // When the store does not answer at the moment, it is asked again.
      isThere = await this.#services.directory.isThere().catch(() => false);
    }
    // From here on another loss is one of its own.
    this.#withoutServers = undefined;
    await Promise.all(this.#clients().map(async (client) => await client.reattach()));
  }

  /**
   * Hangs up on hosts that have gone: one that went silent says nothing of its end. And brings clients back to what they had
   * open on one. Never rejects.
   */
  async #watchHosts(): Promise<void> {
    const { signal } = this.#closed;
    const { directory } = this.#services;
    while (!signal.aborted) {
      await delay(HOSTS_POLL_MS, undefined, { signal, ref: false }).catch(() => "closed");
      const connected = this.#clients().filter(({ hasPeers }) => hasPeers);
      if (connected.length === 0 && !this.#lostHosts.any) continue;
      // When the store does not answer at the moment, it is asked again.
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
   * Closes the oldest stranger when there are too many, whatever its address: behind a proxy all clients have the same one. A
   * good client shows its token at once, so it is never the oldest for long.
   */
  #makeRoom(): void {
    if (this.#strangers.size < MAX_STRANGERS) return;
    for (const connection of this.#strangers) if (!connection.isStranger) this.#strangers.delete(connection);
    if (this.#strangers.size < MAX_STRANGERS) return;
    const strangers = [...this.#strangers];
    // One whose token is being looked up may be let in at any moment.
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

  /** A session that was evicted is in memory again: whoever else had it open is to hear of it again, too. */
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
      // Hung up on since this host may be gone, it is for `#untilTerm` to come back to.
      if (this.#withoutServers === undefined) running = await this.#runs(lost, elapsedMs() > ENDING_MS);
    }
    const waiting = this.#awaited.get(lost.id) ?? new Set();
    this.#awaited.delete(lost.id);
    if (!running) return;
    await Promise.all([...waiting].map(async (client) => await client.reattach(lost.id)));
  }

  /** Whether the server runs again; with `still`, also if it has not ended. */
  async #runs({ id, launchId }: ServerRecord, still: boolean): Promise<boolean> {
    try {
      const server = (await this.#services.store.readRegistry()).servers[id];
      return server?.state === "ready" && (still || server.launchId !== launchId) && isRunning(server);
    } catch {
      return false; // unreadable at the moment: looked at again
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
        // When the store does not answer at the moment, it is asked again.
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
