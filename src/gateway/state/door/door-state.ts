import type { Config } from "../../../config/schema.js";
import type { HostDirectory } from "../../../hosts/directory.js";
import type { SignOn } from "../../../identity/sign-on.js";
import { SignOnEvents } from "../../../identity/sign-on-events.js";
import type { Pool } from "../../../pool/pool.js";
import type { Clock } from "../../../runtime/clock.js";
import type { Sessions } from "../../../sessions/sessions.js";
import type { Store } from "../../../store/ports.js";
import type { Links } from "../links.js";
import { LostHosts, LostServers } from "./lost.js";
import type { DoorListeners } from "./report.js";
import { ServerQuestions } from "./server-questions.js";
import type { Shares } from "./shares.js";

/** The parts of the fleet that the front door needs. */
export interface DoorContext {
  config: Config;
  store: Store;
  sessions: Sessions;
  directory: HostDirectory;
  pool: Pool;
  clock: Clock;
  signOn: SignOn;
  /** How many connections, requests and bytes each user has at all addresses of this process. */
  shares: Shares;
}

/** How many prompts and openings of sessions may begin in one round of the event loop. */
const AT_ONCE = 8;

/** The parts of a client that the door and other clients use. */
export interface Fellow {
  readonly user: string;
  readonly links: Links;
  /** Whether the client has the session open, and brought a tool with that name to it. */
  brings(sessionId: string, tool: string): boolean;
  /**
   * Call this when another client has loaded the session. If this client also had it open before it was unloaded,
   * reopens it, so that this client gets the session's events again.
   */
  follow(sessionId: string): void;
  /**
   * Reopens the sessions that the client had open until their link ended. The client then gets their events again.
   *
   * @param linkId reopens only the sessions of this link; if undefined, those of all servers of this host
   */
  reopen(linkId?: string): void;
  /** Notices the sessions that servers have unloaded without an event. The door calls this every few seconds. */
  noticeUnloads(): void;
}

/** The state that all clients of one front door share. */
export class DoorState implements DoorContext {
  readonly config: Config;
  readonly store: Store;
  readonly sessions: Sessions;
  readonly directory: HostDirectory;
  readonly pool: Pool;
  readonly clock: Clock;
  readonly signOn: SignOn;
  readonly listeners: DoorListeners;
  readonly shares: Shares;
  readonly signOns: SignOnEvents;
  /** Lets prompts and openings of sessions begin, a few at a time. */
  readonly pace = new Pace();
  /** The questions that servers asked in the sessions that clients have open. */
  readonly questions = new ServerQuestions();
  readonly clients = new Set<Fellow>();
  readonly lostServers = new LostServers<Fellow>();
  readonly lostHosts: LostHosts<Fellow>;
  /**
   * One promise for each server that the door is stopping because the client that answered its model requests has gone.
   */
  readonly endings = new Set<Promise<void>>();
  /** While true, no new turns begin. */
  draining = false;
  readonly #closed = new AbortController();

  constructor(context: DoorContext, listeners: DoorListeners) {
    const { config, store, sessions, directory, pool, clock, signOn, shares } = context;
    this.config = config;
    this.store = store;
    this.sessions = sessions;
    this.directory = directory;
    this.pool = pool;
    this.clock = clock;
    this.signOn = signOn.reportingTo(listeners.onSignOn);
    this.signOns = new SignOnEvents(sessions.context.events, "door");
    this.listeners = listeners;
    this.shares = shares;
    this.lostHosts = new LostHosts({ takenOver: directory.isShared, ttlMs: config.host.ttlMs });
  }

  get closed(): AbortSignal {
    return this.#closed.signal;
  }

  close(): void {
    this.#closed.abort();
  }

  /**
   * Call this when the client `by` has loaded the session. Reopens it for the other clients that had it open before its
   * eviction.
   */
  opened(sessionId: string, by: Fellow): void {
    for (const client of this.clients) if (client !== by) client.follow(sessionId);
  }

  /** The users whose clients, other than `except`, brought a tool with that name to the session. */
  bringers(sessionId: string, tool: string, except: Fellow): string[] {
    const others = [...this.clients].filter((client) => client !== except && client.brings(sessionId, tool));
    return others.map(({ user }) => user);
  }
}

/**
 * Lets a few callers pass in each round of the event loop. The others pass in later rounds, in order. Beginning a turn
 * blocks the event loop for a moment. Without this limit, a thousand prompts that arrive together would block the
 * frames of servers for seconds.
 */
class Pace {
  readonly #waiting: (() => void)[] = [];
  #passed = 0;

  async pass(): Promise<void> {
    if (this.#passed === 0) setImmediate(() => this.#nextRound());
    this.#passed++;
    if (this.#passed > AT_ONCE) await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  #nextRound(): void {
    this.#passed = 0;
    for (const resolve of this.#waiting.splice(0, AT_ONCE)) {
      this.#passed++;
      resolve();
    }
    if (this.#passed > 0) setImmediate(() => this.#nextRound());
  }
}
