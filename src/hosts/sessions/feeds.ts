import { setMaxListeners } from "node:events";
import { type FSWatcher, watch } from "node:fs";
import { basename } from "node:path";
import type { Clock } from "../../base/clock.js";
import { HeldFolder } from "../../base/held-folder.js";
import type { HostRecord } from "../../base/host.js";
import type { SessionRecord } from "../../base/session.js";
import { HISTORY } from "../../runtime/history/session-state.js";
import type { SessionPlace } from "../../sessions/history.js";
import type { FleetHosts } from "../fleet-hosts.js";
import type { LocalHost } from "../local-host.js";

/** One follower's subscription to a feed. Disposing it ends the subscription. */
interface Following extends Disposable {
  readonly feed: Feed;
}

/**
 * The sessions that this process follows. Each has one feed, however many followers it has. The kernel reports the
 * changes of histories on this host. In addition, one timer looks at all histories, because the kernel does not report
 * everything.
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

/** How often to look at a history whose changes the kernel does not report, in milliseconds. */
export const LOOK_MS = 250;
/**
 * How often to look at a history whose changes the kernel reports: another machine may write into shared storage, too.
 */
export const LOOK_REPORTED_MS = 2_000;
/** How often to ask another host for the state of a history there, in milliseconds. */
const LOOK_ELSEWHERE_MS = 1_000;
/**
 * How often followers read even without a change, to notice if the user may no longer use the session, in milliseconds.
 */
export const CHECK_MS = 30_000;
/** The shortest time between two wake-ups, in milliseconds. An agent may write into its history all the time. */
const SPACING_MS = 20;

/** Wakes the followers of one session in this process when its history changes. */
class Feed {
  readonly #own: LocalHost;
  readonly #clock: Clock;
  readonly #waiting = new Set<() => void>();
  /** The number of wake-ups so far. */
  #version = 0;
  #place: SessionPlace | null = null;
  #host: HostRecord | null = null;
  #watcher: FSWatcher | null = null;
  /** Whether the kernel reports the changes. On shared storage, it does not report those of other machines. */
  #isReported = true;
  /** The state that the last look found, and the version at that time. */
  #state: string | undefined;
  #versionAtLook = 0;
  #nextLookMs = 0;
  #nextCheckMs: number;
  #lastWakeMs = Number.NEGATIVE_INFINITY;
  #cancelWake: (() => void) | undefined;

  constructor(own: LocalHost, clock: Clock) {
    this.#own = own;
    this.#clock = clock;
    this.#nextCheckMs = clock.now() + CHECK_MS;
  }

  /** Null until the session was found. */
  get place(): SessionPlace | null {
    return this.#place;
  }

  /** The host that has the session. Null for this host. */
  get host(): HostRecord | null {
    return this.#host;
  }

  /**
   * Begins to watch the session where it is now. Call this before each reading of its history.
   *
   * @returns the present version. A reading that begins now contains all changes up to this version.
   */
  async aim({ id, serverId, owner }: SessionRecord, host: HostRecord | null): Promise<number> {
    if (this.#place?.serverId !== serverId || this.#host?.name !== host?.name) {
      this.#unwatch();
      this.#state = undefined;
      this.#place = { id, serverId, owner };
    }
    this.#host = host;
    const place = this.#place;
    if (place !== null && host === null && this.#watcher === null) {
      const folder = await this.#own.folderOf(place);
      // The session may have moved, or another follower may have begun to watch it.
      if (folder !== null && this.#place === place && this.#watcher === null) this.#watch(folder);
    }
    return this.#version;
  }

  /** Resolves at the next change after this version, when the signal aborts, or after `withinMs` milliseconds. */
  async changed(version: number, signal: AbortSignal, withinMs: number | undefined): Promise<void> {
    if (this.#version !== version || signal.aborted) return;
    // One signal may end all waits of a fleet. With more than ten listeners, Node prints a leak warning.
    setMaxListeners(0, signal);
    await new Promise<void>((resolve) => {
      const end = () => {
        cancel?.();
        this.#waiting.delete(end);
        signal.removeEventListener("abort", end);
        resolve();
      };
      const cancel = withinMs === undefined ? undefined : this.#clock.after(withinMs, end, { ref: true });
      this.#waiting.add(end);
      signal.addEventListener("abort", end, { once: true });
    });
  }

  isDue(nowMs: number): boolean {
    return this.#place !== null && nowMs >= this.#nextLookMs;
  }

  /** Call this when a look begins. */
  looking(): void {
    this.#nextLookMs = Number.POSITIVE_INFINITY;
  }

  /** Call this with the state that a look has found; undefined if the host did not answer. */
  found(state: string | undefined): void {
    const nowMs = this.#clock.now();
    const isChanged = state === undefined || state !== this.#state;
    if (isChanged && this.#state !== undefined && this.#version === this.#versionAtLook) this.#isReported = false;
    this.#state = state;
    // The first look counts as a change, because the history may have changed since the first reading.
    if (isChanged || nowMs >= this.#nextCheckMs) this.wake();
    this.#versionAtLook = this.#version;
    const hereMs = this.#watcher !== null && this.#isReported ? LOOK_REPORTED_MS : LOOK_MS;
    this.#nextLookMs = nowMs + (this.#host === null ? hereMs : LOOK_ELSEWHERE_MS);
  }

  wake(): void {
    this.#cancelWake?.();
    this.#cancelWake = undefined;
    this.#version++;
    this.#lastWakeMs = this.#clock.now();
    this.#nextCheckMs = this.#lastWakeMs + CHECK_MS;
    for (const end of [...this.#waiting]) end();
  }

  close(): void {
    this.#unwatch();
    this.#cancelWake?.();
  }

  #watch(path: string): void {
    try {
      // Watch the opened folder, not its path, because the user's agent may replace the folder with a link.
      using folder = HeldFolder.open(path);
      if (folder === null) return;
      const held = folder.at("");
      const watcher = watch(held, { persistent: false }, (_, name) => {
        if (name === HISTORY) this.#isReported = true;
        // The folder itself was moved or deleted.
        else if (name === basename(held)) this.#unwatch();
        else return;
        this.#soon();
      });
      watcher.on("error", () => this.#unwatch());
      this.#watcher = watcher;
      this.#isReported = true;
    } catch {
      this.#watcher = null; // The kernel watches too many files, or the agent has made the folder unreadable.
    }
  }

  #unwatch(): void {
    this.#watcher?.close();
    this.#watcher = null;
  }

  #soon(): void {
    if (this.#cancelWake !== undefined) return;
    const waitMs = this.#lastWakeMs + SPACING_MS - this.#clock.now();
    if (waitMs <= 0) this.wake();
    else this.#cancelWake = this.#clock.after(waitMs, () => this.wake());
  }
}
