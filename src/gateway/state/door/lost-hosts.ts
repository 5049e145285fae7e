import type { HostRecord } from "../../../model/host.js";
import type { Clock } from "../../../runtime/deadline.js";

/**
 * How long clients wait for a lost server or host, in milliseconds. They wait so that clients that only listen get its
 * events again.
 */
export const REVIVAL_MS = 60_000;

export interface LostHostsOptions {
  /** Whether other hosts take over the sessions of a host that is gone, so that clients need not wait for its return. */
  takenOver: boolean;
  /** How long a host counts as alive after its last heartbeat, in milliseconds. */
  ttlMs: number;
}

interface Lost<Client> {
  readonly host: HostRecord;
  readonly clients: Set<Client>;
  readonly sinceMs: number;
}

/** The hosts to which connections were lost, and the clients that had sessions open there. */
export class LostHosts<Client> {
  readonly #options: LostHostsOptions;
  readonly #clock: Clock;
  readonly #lost = new Map<string, Lost<Client>>();

  /** @param clock replaced in tests */
  constructor(options: LostHostsOptions, clock: Clock = performance) {
    this.#options = options;
    this.#clock = clock;
  }

  get any(): boolean {
    return this.#lost.size > 0;
  }

  await(host: HostRecord, client: Client): void {
    const known = this.#lost.get(host.name);
    if (known !== undefined) known.clients.add(client);
    else this.#lost.set(host.name, { host, clients: new Set([client]), sinceMs: this.#clock.now() });
  }

  /** Removes and returns the hosts whose sessions are available again. Forgets the others after a minute. */
  back(hosts: readonly HostRecord[]): Lost<Client>[] {
    const back: Lost<Client>[] = [];
    for (const [name, lost] of this.#lost) {
      const isBack = this.#isBack(lost, hosts);
      if (isBack) back.push(lost);
      if (isBack || this.#clock.now() - lost.sinceMs > REVIVAL_MS) this.#lost.delete(name);
    }
    return back;
  }

  #isBack({ host, sinceMs }: Lost<Client>, hosts: readonly HostRecord[]): boolean {
    const { takenOver, ttlMs } = this.#options;
    const now = hosts.find(({ name }) => name === host.name);
    if (now === undefined || now.gone) return takenOver;
    // A host within its TTL may already be dead. It is back only if it restarted, or sent a heartbeat after we lost it.
    return now.startedAt !== host.startedAt || this.#clock.now() - sinceMs > ttlMs;
  }
}
