import type { ServerRecord } from "../../model/server.js";
import type { EgressStatus } from "../../sandbox/network/ask.js";
import { networkFolder } from "../../sandbox/network/folder.js";
import { EGRESS_RESULTS } from "../../sandbox/network/outbound.js";
import type { ServeContext } from "../context.js";

/** Restarts the proxy of the servers with an allow-list if the proxy has died, and counts the requests to it. */
export class EgressWatch {
  readonly #context: Pick<ServeContext, "stateRoot" | "metrics">;
  #last: EgressStatus | null = null;

  constructor(context: Pick<ServeContext, "stateRoot" | "metrics">) {
    this.#context = context;
  }

  async look(servers: readonly Pick<ServerRecord, "sandbox">[]): Promise<void> {
    if (!servers.some(({ sandbox }) => sandbox?.network === "allow-list")) return;
    const { ensureProxy } = await import("../../sandbox/network/egress.js");
    const now = await ensureProxy(networkFolder(this.#context.stateRoot));
    // On the first look of this process, count none of the earlier requests. A new proxy has counted from zero, so
    // count all its requests.
    const before = this.#last === null ? now.counts : this.#last.id === now.id ? this.#last.counts : null;
    this.#last = now;
    for (const result of EGRESS_RESULTS) {
      this.#context.metrics.egressRequested(result, now.counts[result] - (before?.[result] ?? 0));
    }
  }
}
