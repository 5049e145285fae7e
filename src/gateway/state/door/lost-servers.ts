import type { Registry } from "../../../model/registry.js";
import type { ServerRecord } from "../../../model/server.js";
import { isRunning } from "../../../pool/server.js";
import { REVIVAL_MS } from "./lost-hosts.js";

/** How long a process may outlive its connection, in milliseconds. If it runs longer, only the connection was lost. */
const ENDING_MS = 1_000;

interface Lost<Client> {
  readonly server: ServerRecord;
  readonly clients: Set<Client>;
  readonly sinceMs: number;
}

/** The servers of this host to which connections were lost, and the clients that had sessions open there. */
export class LostServers<Client> {
  readonly #lost = new Map<string, Lost<Client>>();
  #wake: (() => void) | undefined;

  get any(): boolean {
    return this.#lost.size > 0;
  }

  /** Resolves when a server was lost and is not back. */
  async some(): Promise<void> {
    if (this.any) return;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
  }

  await(server: ServerRecord, client: Client): void {
    const known = this.#lost.get(server.id);
    if (known !== undefined) known.clients.add(client);
    else this.#lost.set(server.id, { server, clients: new Set([client]), sinceMs: performance.now() });
    this.#wake?.();
  }

  /**
   * Removes and returns the servers that run again, in another launch or still in the same one. Forgets the others after
   * a minute.
   *
   * @param servers null if it is not known which servers run
   */
  back(servers: Registry["servers"] | null): Lost<Client>[] {
    const back: Lost<Client>[] = [];
    for (const [id, lost] of this.#lost) {
      const isBack = servers !== null && runsAgain(lost, servers[id]);
      if (isBack) back.push(lost);
      if (isBack || performance.now() - lost.sinceMs > REVIVAL_MS) this.#lost.delete(id);
    }
    return back;
  }
}

function runsAgain({ server: { launchId }, sinceMs }: Lost<unknown>, now: ServerRecord | undefined): boolean {
  if (now?.state !== "ready" || !isRunning(now)) return false;
  return now.launchId !== launchId || performance.now() - sinceMs > ENDING_MS;
}
