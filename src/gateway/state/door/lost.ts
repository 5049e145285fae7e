import type { HostRecord } from "../../../model/host.js";
import type { Registry } from "../../../model/registry.js";
import type { ServerRecord } from "../../../model/server.js";
import { isRunning } from "../../../pool/server.js";
import type { Clock } from "../../../runtime/clock.js";

/**
 * How long the door waits for a lost server or host to come back, in milliseconds. After that, it reopens a session
 * from there only at a client's next request.
 */
const REVIVAL_MS = 60_000;
/** If a server's process still runs this long after the loss, in milliseconds, only the connection was lost. */
const ENDING_MS = 1_000;

interface Lost<Peer, Client> {
  readonly peer: Peer;
  readonly clients: Set<Client>;
  readonly sinceMs: number;
}

/** The servers or hosts to which connections were lost, and the clients that had sessions open there. */
class LostPeers<Peer, Client> {
  protected readonly clock: Pick<Clock, "now">;
  readonly #lost = new Map<string, Lost<Peer, Client>>();

  /** @param clock replaced in tests */
  constructor(clock: Pick<Clock, "now"> = performance) {
    this.clock = clock;
  }

  get any(): boolean {
    return this.#lost.size > 0;
  }

  protected add(name: string, peer: Peer, client: Client): void {
    const known = this.#lost.get(name);
    if (known !== undefined) known.clients.add(client);
    else this.#lost.set(name, { peer, clients: new Set([client]), sinceMs: this.clock.now() });
  }

  /** Removes and returns the servers or hosts that can be reached again. Forgets those that were lost too long ago. */
  protected takeBack(isBack: (peer: Peer, lostMs: number) => boolean): Lost<Peer, Client>[] {
    const back: Lost<Peer, Client>[] = [];
    for (const [name, lost] of this.#lost) {
      const lostMs = this.clock.now() - lost.sinceMs;
      const isThere = isBack(lost.peer, lostMs);
      if (isThere) back.push(lost);
      if (isThere || lostMs > REVIVAL_MS) this.#lost.delete(name);
    }
    return back;
  }
}

export class LostServers<Client> extends LostPeers<ServerRecord, Client> {
  #wake: (() => void) | undefined;

  await(server: ServerRecord, client: Client): void {
    this.add(server.id, server, client);
    this.#wake?.();
  }

  /** Resolves when at least one client waits for a server. */
  async some(): Promise<void> {
    if (this.any) return;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
  }

  /**
   * Removes and returns the servers that run again, in another launch or still in the same launch.
   *
   * @param servers null if the registry could not be read
   */
  back(servers: Registry["servers"] | null): Lost<ServerRecord, Client>[] {
    return this.takeBack(({ id, launchId }, lostMs) => {
      const now = servers?.[id];
      return now?.state === "ready" && (lostMs > ENDING_MS || now.launchId !== launchId) && isRunning(now);
    });
  }
}

export class LostHosts<Client> extends LostPeers<HostRecord, Client> {
  readonly #options: { takenOver: boolean; ttlMs: number };

  /**
   * @param options `takenOver`: whether other hosts take over the sessions of a host that is gone. `ttlMs`: how long a host
   * counts as alive after its last heartbeat.
   */
  constructor(options: { takenOver: boolean; ttlMs: number }, clock?: Pick<Clock, "now">) {
    super(clock);
    this.#options = options;
  }

  await(host: HostRecord, client: Client): void {
    this.add(host.name, host, client);
  }

  /** Removes and returns the hosts whose sessions are available again. */
  back(hosts: readonly HostRecord[]): Lost<HostRecord, Client>[] {
    const { takenOver, ttlMs } = this.#options;
    return this.takeBack((host, lostMs) => {
      const now = hosts.find(({ name }) => name === host.name);
      if (now === undefined || now.gone) return takenOver;
      // The directory lists a dead host as alive until the host's TTL has passed. So a host is back only if it
      // restarted, or if it is still alive a whole TTL after the loss.
      return now.startedAt !== host.startedAt || lostMs > ttlMs;
    });
  }
}
