import { setTimeout as delay, setImmediate as immediate } from "node:timers/promises";
import type { DoorState } from "./state/door/door-state.js";
import { peerLinkId } from "./state/links.js";

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
   * True from the moment when the door disconnects from the servers of this host until this host may have sessions again.
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
      // While other hosts may count this host as gone, leave the sessions to `#awaitTerm`. If the registry cannot be read
      // now, the next round tries again.
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
