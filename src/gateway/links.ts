import { FleetError } from "../errors.js";
import { provenEndpoint } from "../runtime/probe.js";
import { isAlive } from "../runtime/process-table.js";
import type { ServerRecord } from "../store/store.js";
import type { Params } from "./client-message.js";
import { Upstream, type UpstreamListener } from "./upstream.js";

/** One client's connection to one launch of a server. */
export interface Link {
  readonly server: ServerRecord;
  readonly upstream: Upstream;
  /** The user's own server: all that is on it is the user's. */
  readonly own: boolean;
  /** What the server answered to `connect`. */
  readonly greeting: Params;
}

export interface LinksOptions {
  hello: Params;
  ownServerId: string;
  /** Makes the listener of a link. It may be called before the link is known to anybody else. */
  listen: (link: () => Link | undefined) => UpstreamListener;
}

/** The servers that one client is connected to: its home, and those that sessions of others or on other servers need. */
export class Links {
  readonly #options: LinksOptions;
  readonly #links = new Map<string, Promise<Link>>();
  readonly #live = new Map<string, Link>();
  #closed = false;

  constructor(options: LinksOptions) {
    this.#options = options;
  }

  /**
   * The connection to this server if there is one whose server lives. The process is looked at: its end may be known to the
   * kernel before it is known to us, and what is sent in between would be lost.
   */
  live(serverId: string): Link | undefined {
    const link = this.#live.get(serverId);
    const process = link?.server.process ?? null;
    return link !== undefined && !link.upstream.closed && process !== null && isAlive(process) ? link : undefined;
  }

  /** Connects to a running server. @throws FleetError `FLEET_SERVER_LOST`, `FLEET_SERVER_UNREACHABLE`. */
  async to(server: ServerRecord, signal: AbortSignal): Promise<Link> {
    const live = this.live(server.id);
    if (live?.server.launchId === server.launchId) return live;
    this.#live.get(server.id)?.upstream.destroy();
    const known = this.#links.get(server.id);
    if (known !== undefined) return await known;
    const opening = this.#open(server, signal);
    this.#links.set(server.id, opening);
    try {
      return await opening;
    } finally {
      this.#links.delete(server.id);
    }
  }

  async #open(server: ServerRecord, signal: AbortSignal): Promise<Link> {
    let link: Link | undefined;
    const listener = this.#options.listen(() => link);
    const { upstream, greeting } = await Upstream.open(provenEndpoint(server), this.#options.hello, listener, signal);
    link = { server, upstream, greeting, own: server.id === this.#options.ownServerId };
    if (this.#closed) upstream.destroy(); // the client has gone meanwhile
    if (upstream.closed) throw new FleetError("FLEET_SERVER_LOST", `Server ${server.id} ended.`);
    this.#live.set(server.id, link);
    return link;
  }

  all(): Link[] {
    return [...this.#live.values()];
  }

  forget(link: Link): void {
    if (this.#live.get(link.server.id) === link) this.#live.delete(link.server.id);
  }

  close(): void {
    this.#closed = true;
    for (const { upstream } of this.#live.values()) upstream.destroy();
    this.#live.clear();
  }
}
