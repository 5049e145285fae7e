import type { HostRecord } from "../store/store.js";

export interface LostHostsOptions {
  /** Whether what was on a host that is gone is another's to take, so that its coming back is not waited for. */
  takenOver: boolean;
  /** How long a host counts as there after its last heartbeat, in milliseconds. */
  ttlMs: number;
  /** How long clients wait for it, in milliseconds. */
  waitMs: number;
}

interface Lost<Client> {
  readonly host: HostRecord;
  readonly clients: Set<Client>;
  readonly sinceMs: number;
}

/** Hosts to which connections were lost, and which clients had something open there. */
export class LostHosts<Client> {
  readonly #options: LostHostsOptions;
  readonly #now: () => number;
  readonly #lost = new Map<string, Lost<Client>>();

  /** @param now a clock in milliseconds that never goes back; replaced in tests */
  constructor(options: LostHostsOptions, now: () => number = () => performance.now()) {
    this.#options = options;
    this.#now = now;
  }

  get any(): boolean {
    return this.#lost.size > 0;
  }

  await(host: HostRecord, client: Client): void {
    const known = this.#lost.get(host.name);
    if (known !== undefined) known.clients.add(client);
    else this.#lost.set(host.name, { host, clients: new Set([client]), sinceMs: this.#now() });
  }

  /** Takes out those whose sessions can be had again; those that were waited for long enough are forgotten. */
  back(hosts: readonly HostRecord[]): Lost<Client>[] {
    const back: Lost<Client>[] = [];
    for (const [name, lost] of this.#lost) {
      const isBack = this.#isBack(lost, hosts);
      if (isBack) back.push(lost);
      if (isBack || this.#now() - lost.sinceMs > this.#options.waitMs) this.#lost.delete(name);
    }
    return back;
  }

  #isBack({ host, sinceMs }: Lost<Client>, hosts: readonly HostRecord[]): boolean {
    const { takenOver, ttlMs } = this.#options;
    const now = hosts.find(({ name }) => name === host.name);
    if (now === undefined || now.gone) return takenOver;
    // One that still counts as there may have died: it is there if it has said so after the loss, or was started since.
    return now.startedAt !== host.startedAt || this.#now() - sinceMs > ttlMs;
  }
}
