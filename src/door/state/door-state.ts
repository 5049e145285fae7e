import type { Clock } from "../../base/clock.js";
import type { HostRecord } from "../../base/host.js";
import type { Registry, ServerRecord } from "../../base/server.js";
import type { Config } from "../../config/schema.js";
import { type SignOn, SignOnEvents } from "../../identity/sign-on.js";
import type { HostDirectory } from "../../servers/directory.js";
import type { Pool } from "../../servers/pool.js";
import { isRunning } from "../../servers/server.js";
import type { Sessions } from "../../sessions/sessions.js";
import type { Store } from "../../store/store.js";
import type { ServerQuestion } from "../policy/reach.js";
import { eventIn } from "../wire/events.js";
import type { Links } from "./links.js";
import type { DoorListeners } from "./report.js";
import type { Shares } from "./shares.js";

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
   * @param options `takenOver`: whether other hosts take over the sessions of a host that is gone. `ttlMs`: how long a
   * host counts as alive after its last heartbeat.
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

/** The events with which a server asks a question, each with the methods by which a client answers it. */
const ANSWERED_BY = new Map(
  Object.entries({
    "external_tool.requested": ["session.tools.handlePendingToolCall"],
    "command.execute": ["session.commands.handlePendingCommand"],
    "command.queued": ["session.commands.respondToQueuedCommand"],
    "elicitation.requested": ["session.ui.handlePendingElicitation"],
    "user_input.requested": ["session.ui.handlePendingUserInput"],
    "sampling.requested": ["session.ui.handlePendingSampling"],
    "auto_mode_switch.requested": ["session.ui.handlePendingAutoModeSwitch"],
    "session_limits_exhausted.requested": ["session.ui.handlePendingSessionLimitsExhausted"],
    "exit_plan_mode.requested": ["session.ui.handlePendingExitPlanMode"],
    "mcp.oauth_required": ["session.mcp.oauth.handlePendingRequest", "session.mcp.oauth.respond"],
    "mcp.headers_refresh_required": ["session.mcp.headers.handlePendingHeadersRefreshRequest"],
    // No method here, because the runtime itself checks the session of an answer to a permission request (measured with
    // 1.0.85).
    "permission.requested": [],
  }),
);

const ANSWERS = new Set<string>([...ANSWERED_BY.values()].flat());

/**
 * Whether a method answers a server's question and the runtime finds that question by its id alone. The runtime would
 * accept such an answer from a client of any session.
 */
export function isAnswer(method: string): boolean {
  return ANSWERS.has(method);
}

const MAX_REQUESTS = 1_000;
const MAX_SESSIONS = 10_000;

/**
 * The questions that servers asked in sessions that this door's clients have open. The door keeps them because only the
 * event shows which session asked. It keeps them even after a client disconnects, because the client's user may connect
 * again and answer.
 */
class ServerQuestions {
  readonly #sessions = new Map<string, Map<string, ServerQuestion>>();

  /** Stores the event if it is a question. */
  note(sessionId: string, eventType: string, body: Buffer): void {
    if (!ANSWERED_BY.has(eventType)) return;
    const { requestId, toolName, permissionRequest } = (eventIn(body).data ?? {}) as QuestionData;
    if (typeof requestId !== "string") return;
    const { kind, toolName: permitted } = permissionRequest ?? {};
    const [tool] = [toolName, permitted].filter((name) => typeof name === "string");
    const requests = this.#of(sessionId);
    requests.set(requestId, { kind: typeof kind === "string" ? kind : undefined, tool });
    dropOldest(requests, MAX_REQUESTS);
  }

  get(sessionId: string, requestId: unknown): ServerQuestion | undefined {
    return typeof requestId === "string" ? this.#sessions.get(sessionId)?.get(requestId) : undefined;
  }

  /** The session's questions. Moves the session to the end of the map, so that `dropOldest` drops it last. */
  #of(sessionId: string): Map<string, ServerQuestion> {
    const requests = this.#sessions.get(sessionId) ?? new Map<string, ServerQuestion>();
    this.#sessions.delete(sessionId);
    this.#sessions.set(sessionId, requests);
    dropOldest(this.#sessions, MAX_SESSIONS);
    return requests;
  }
}

function dropOldest(map: Map<string, unknown>, most: number): void {
  const oldest = map.keys().next().value;
  if (map.size > most && oldest !== undefined) map.delete(oldest);
}

interface QuestionData {
  requestId?: unknown;
  toolName?: string;
  permissionRequest?: { kind?: unknown; toolName?: string };
}

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
export interface DoorClient {
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
  readonly clients = new Set<DoorClient>();
  readonly lostServers = new LostServers<DoorClient>();
  readonly lostHosts: LostHosts<DoorClient>;
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
  opened(sessionId: string, by: DoorClient): void {
    for (const client of this.clients) if (client !== by) client.follow(sessionId);
  }

  /** The users whose clients, other than `except`, brought a tool with that name to the session. */
  bringers(sessionId: string, tool: string, except: DoorClient): string[] {
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
