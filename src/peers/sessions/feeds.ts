import type { HostRecord } from "../../model/host.js";
import type { Clock } from "../../runtime/clock.js";
import type { FleetHosts } from "../fleet-hosts.js";
import { Feed, LOOK_MS } from "./feed.js";

/** One follower's subscription to a feed. Disposing it ends the subscription. */
export interface Following extends Disposable {
  readonly feed: Feed;
}

/**
 * The sessions that this process follows. Each has one feed, however many followers it has. The kernel reports the changes of
 * histories on this host. In addition, one timer looks at all histories, because the kernel does not report everything.
 */
export class HistoryFeeds {
  readonly #hosts: FleetHosts;
  readonly #clock: Clock;
  readonly #feeds = new Map<string, { feed: Feed; followers: number }>();
  #cancelLook: (() => void) | undefined;

  constructor(hosts: FleetHosts, clock: Clock) {
    this.#hosts = hosts;
    this.#clock = clock;
  }

  /** The number of sessions with followers. */
  get size(): number {
    return this.#feeds.size;
  }

  follow(id: string): Following {
    const shared = this.#feeds.get(id) ?? { feed: new Feed(this.#hosts.own, this.#clock), followers: 0 };
    this.#feeds.set(id, shared);
    shared.followers++;
    this.#cancelLook ??= this.#lookLater();
    return {
      feed: shared.feed,
      [Symbol.dispose]: () => {
        if (--shared.followers > 0) return;
        shared.feed.close();
        this.#feeds.delete(id);
        if (this.#feeds.size > 0) return;
        this.#cancelLook?.();
        this.#cancelLook = undefined;
      },
    };
  }

  /** Schedules the next look. The timer keeps the process alive for as long as somebody follows a session. */
  #lookLater(): () => void {
    return this.#clock.after(
      LOOK_MS,
      () => {
        this.#cancelLook = this.#lookLater();
        this.#look();
      },
      { ref: true },
    );
  }

  #look(): void {
    const nowMs = this.#clock.now();
    const due = new Map<string | null, Feed[]>();
    for (const { feed } of this.#feeds.values()) {
      if (!feed.isDue(nowMs)) continue;
      const name = feed.host?.name ?? null;
      const others = due.get(name);
      if (others === undefined) due.set(name, [feed]);
      else others.push(feed);
    }
    for (const feeds of due.values()) void this.#lookAt(feeds, feeds[0]?.host ?? null);
  }

  /**
   * Looks at the histories of one host. If the host does not answer, the followers notice that at their next reading.
   */
  async #lookAt(feeds: readonly Feed[], host: HostRecord | null): Promise<void> {
    for (const feed of feeds) feed.looking();
    const there = this.#hosts.at(host === null ? { here: true } : { here: false, host });
    const sessions = feeds.flatMap(({ place }) => place ?? []);
    const states: readonly string[] = await there.histories({ sessions }).catch(() => []);
    for (const [at, feed] of feeds.entries()) feed.found(states[at]);
  }
}
