import { existsSync, lstatSync, readlinkSync, realpathSync } from "node:fs";
import { hostname } from "node:os";
import { dirname, join } from "node:path";
import { FleetError, quote } from "../base/errors.js";
import type { HostEntry, HostRecord } from "../base/host.js";
import { isSessionId } from "../base/ids.js";
import type { ServerRecord } from "../base/server.js";
import { isLoopback } from "../base/values/network.js";
import { countOf } from "../base/values/text.js";
import type { Address } from "../config/rules.js";
import {
  ensureNote,
  hasHostFolder,
  instanceOf,
  linkToPlace,
  makeHostFolder,
  placePath,
  removeNote,
} from "../runtime/files/shared-storage.js";
import { listTakenSessions, sessionStatePath } from "../runtime/history/session-state.js";
import { showAddress } from "../runtime/launch/listen.js";
import { ownVersion } from "../runtime/launch/versions.js";
import { announcedDoor } from "../servers/directory.js";
import { groupOfServer, isRunning } from "../servers/server.js";
import { loadedSessions, unloadAtOnce } from "../servers/stop.js";
import type { HostTable } from "../store/hosts.js";
import { sessionsOfThisHost } from "../store/sessions.js";
import type { ServeContext } from "./context.js";
import { attempt, logFailure } from "./context.js";

/** How many heartbeats a host sends within `host.ttl`, the time for which one heartbeat keeps the host alive. */
const BEATS = 3;
/** The shortest wait after a heartbeat that failed, in milliseconds. */
const RETRY_MS = 500;

type HeartbeatContext = Pick<ServeContext, "clock" | "config" | "log" | "metrics" | "stateRoot" | "store">;

/**
 * Shows the other hosts that this host is alive. A term is a period in which they consider it alive without
 * interruption. This host notices the end of its term no later than the other hosts.
 */
export class Heartbeat {
  readonly #context: HeartbeatContext;
  readonly #hosts: HostTable;
  readonly #instance: string;
  readonly #terms: Terms;
  #entry: HostEntry;
  #term = 0;
  /** The time (`clock.now()`) from which the other hosts may consider the term over. */
  #end = 0;
  #cancelBeat = (): void => undefined;
  #cancelExpiry = (): void => undefined;
  #beat: Promise<unknown> = Promise.resolve();
  /** The number of the last heartbeat that we sent. `#answered` is the highest number of an answered heartbeat. */
  #sent = 0;
  #answered = 0;
  #isOver = false;
  #left = false;

  private constructor(context: HeartbeatContext, hosts: HostTable, instance: string, terms: Terms) {
    this.#context = context;
    this.#hosts = hosts;
    this.#instance = instance;
    this.#terms = terms;
    const startedAt = new Date().toISOString();
    const { shared: storage } = context.config.storage;
    this.#entry = { door: null, state: "serving", startedAt, version: ownVersion(), storage };
  }

  /**
   * Registers this host. Other hosts send users here only after {@link announce}.
   *
   * @throws FleetError `FLEET_SUPERVISOR_RUNNING` when another host is alive under this name; the errors of
   * {@link refuseUnlike}.
   */
  static async enter(context: HeartbeatContext, hosts: HostTable, terms: Terms): Promise<Heartbeat> {
    const { stateRoot } = context;
    const before = (await hosts.list()).find(({ name }) => name === hosts.own);
    const isNoted = instanceOf(stateRoot) !== null;
    const { instance } = ensureNote(stateRoot, hosts.own);
    const heartbeat = new Heartbeat(context, hosts, instance, terms);
    try {
      await heartbeat.#send();
      heartbeat.#next();
      // Check again, because a host that has registered at the same moment is visible only now.
      await refuseUnlike(hosts, context.config.storage.shared);
    } catch (error) {
      const failure = "the registration of this host could not be undone";
      await attempt(context, failure, () => heartbeat.#withdraw(before));
      if (before === undefined && !isNoted) removeNote(stateRoot);
      throw error;
    }
    return heartbeat;
  }

  /** Undoes the registration. @param before this host's record before the registration */
  async #withdraw(before: HostRecord | undefined): Promise<void> {
    if (this.#term === 0) return;
    // If the host was alive before, let it still count as alive. An earlier `serve` on this host may have died a moment
    // ago, and the next `serve` adopts its servers.
    await this.leave({ gone: before === undefined || before.gone });
    if (before === undefined) await this.#hosts.forget(this.#hosts.own);
  }

  /** The current term of this host. 0 when the host may count as gone. */
  get term(): number {
    return this.#isOver ? 0 : this.#term;
  }

  /** Announces the address at which the other hosts reach the front door. */
  async announce(listening: Address | null): Promise<void> {
    const { advertise } = this.#context.config.host;
    if (advertise === null && listening !== null && isLoopback(listening)) {
      const message = "hosts on other machines cannot reach this front door, because it listens only on this machine";
      this.#context.log("warn", message, { listen: showAddress(listening), set: "serve.listen or host.advertise" });
    }
    const hasTls = this.#context.config.serve.tls.cert !== null;
    const door = listening === null ? null : announcedDoor(advertise ?? reachable(listening), hasTls);
    this.#entry = { ...this.#entry, door };
    await this.#send();
  }

  /** Makes the other hosts place no more users on this host. */
  async closeToUsers(): Promise<void> {
    this.#entry = { ...this.#entry, state: "draining" };
    await this.#send();
  }

  /**
   * Ends the heartbeat.
   *
   * @param how.gone true: this host has no servers left, so it counts as gone at once. false: the servers of this host
   * keep running. The next `serve` on this host adopts them. If that `serve` starts in time, the term continues.
   */
  async leave({ gone }: { gone: boolean }): Promise<void> {
    this.#left = true;
    this.#cancelBeat();
    this.#cancelExpiry();
    await this.#beat;
    if (gone) await this.#hosts.leave(this.#instance);
  }

  #next(afterMs = this.#context.config.host.ttlMs / BEATS): void {
    if (this.#left) return;
    this.#cancelBeat();
    this.#cancelBeat = this.#context.clock.after(afterMs, () => {
      this.#beat = this.#regular();
    });
  }

  /** Sends a heartbeat and schedules the next. Never rejects. */
  async #regular(): Promise<void> {
    try {
      await this.#send();
      this.#next();
    } catch (error) {
      logFailure(this.#context, "the heartbeat of this host failed", error);
      this.#next(Math.max(RETRY_MS, this.#context.config.host.ttlMs / (BEATS * BEATS)));
    }
  }

  async #send(): Promise<void> {
    const { clock, config } = this.#context;
    const { ttlMs } = config.host;
    const asked = clock.now();
    const number = ++this.#sent;
    const { term } = await this.#hosts.beat(this.#instance, this.#entry, ttlMs);
    // Ignore the answer to an earlier heartbeat, because we already have the answer to a later one.
    if (this.#left || number < this.#answered) return;
    this.#answered = number;
    this.#end = asked + ttlMs;
    this.#cancelExpiry();
    this.#cancelExpiry = clock.after(Math.max(0, this.#end - clock.now()), () => this.#expire());
    const before = this.#term;
    this.#term = term;
    if (before !== 0 && before !== term) {
      this.#expire(); // a process that was suspended has not noticed the end of its term
      this.#context.log("warn", "other hosts considered this host gone, and it is back", { before, term });
      void this.#terms.begun();
    }
    this.#isOver = false;
  }

  #expire(): void {
    if (this.#isOver || this.#left) return;
    this.#isOver = true;
    this.#context.log("error", "other hosts may consider this host gone, because its heartbeat could not be renewed", {
      term: this.#term,
    });
    this.#terms.over();
  }
}

/** The address to which other machines can connect. Replaces `0.0.0.0` and `::` with this host's name. */
function reachable({ host, port }: Address): Address {
  return host === "0.0.0.0" || host === "::" ? { host: hostname(), port } : { host, port };
}

/** @throws FleetError `FLEET_STORAGE_UNUSABLE` when this host and another one do not use the same storage. */
export async function refuseUnlike(hosts: HostTable, shared: string | null): Promise<void> {
  const others = (await hosts.list()).filter(({ name }) => name !== hosts.own);
  refuseMixed(others, shared);
  if (shared === null) return;
  // Refuse a folder that the other hosts do not use, because they would never see the files of this host.
  const missing = await unlikeHosts(shared, others);
  if (missing.length === 0) return;
  const message = `The folder ${quote(shared)} is not the folder that host ${missing.map(quote).join(", ")} uses, because it has no files of that host.`;
  throw new FleetError("FLEET_STORAGE_UNUSABLE", message, {
    suggestions: [`findmnt --target ${shared}`, "copilotfleet doctor"],
  });
}

/** The names of the live hosts whose folder is not in this shared folder, so that they use another one. */
export async function unlikeHosts(shared: string, hosts: readonly HostRecord[]): Promise<string[]> {
  const sharing = hosts.filter(({ gone, storage }) => !gone && storage !== null);
  const isThere = await Promise.all(sharing.map(async ({ name }) => await hasHostFolder(shared, name)));
  return sharing.filter((_, index) => isThere[index] === false).map(({ name }) => name);
}

function refuseMixed(others: readonly HostRecord[], shared: string | null): void {
  const other = others.find(({ gone, storage }) => !gone && (storage === null) !== (shared === null));
  if (other === undefined) return;
  const [here, there] = [shared, other.storage].map((folder) => (folder === null ? "its own disk" : quote(folder)));
  const message = `This host keeps sessions on ${here}, but host ${quote(other.name)} keeps them on ${there}. All hosts must use the same storage.`;
  throw new FleetError("FLEET_STORAGE_UNUSABLE", message, {
    suggestions: ["Set storage.shared on all hosts, or on none."],
  });
}

/**
 * Moves this host's sessions to the shared storage, if there is one. Call this before other hosts count this host as
 * alive.
 */
export async function placeSessions({ store, config }: Pick<ServeContext, "store" | "config">): Promise<void> {
  const { shared } = config.storage;
  if (store.hosts === null) return;
  await refuseUnlike(store.hosts, shared);
  if (shared === null) return;
  const { own } = store.hosts;
  const { servers } = await store.registry.read();
  for (const { home } of Object.values(servers)) refuseUnmounted(home, join(shared, "hosts", own));
  await makeHostFolder(shared, own);
  for (const server of Object.values(servers)) {
    const place = { shared, host: own, group: groupOfServer(server) };
    if (lstatSync(server.home, { throwIfNoEntry: false }) === undefined || isAt(server.home, placePath(place)))
      continue;
    if (isRunning(server)) {
      const message = `Server ${server.id} is running and keeps its sessions outside of the shared storage.`;
      throw new FleetError("FLEET_STORAGE_UNUSABLE", message, {
        suggestions: ["copilotfleet stop --all", "Then start serve again. It moves the sessions."],
      });
    }
    await linkToPlace(server.home, place);
  }
}

/** Throws if a home links to this host's folder and that folder is missing, because then the storage is not mounted. */
function refuseUnmounted(home: string, hostFolder: string): void {
  const state = sessionStatePath(home);
  if (lstatSync(state, { throwIfNoEntry: false })?.isSymbolicLink() !== true || existsSync(hostFolder)) return;
  if (!readlinkSync(state).startsWith(`${hostFolder}/`)) return;
  const message = `This host keeps sessions in ${quote(hostFolder)}, which does not exist. Either nothing is mounted, or the wrong file system is.`;
  throw new FleetError("FLEET_STORAGE_UNUSABLE", message, {
    suggestions: [`findmnt --target ${dirname(dirname(hostFolder))}`, "copilotfleet doctor"],
  });
}

function isAt(home: string, path: string): boolean {
  const state = sessionStatePath(home);
  if (lstatSync(state, { throwIfNoEntry: false })?.isSymbolicLink() !== true) return false;
  return realpathIfThere(state) === realpathIfThere(path);
}

function realpathIfThere(path: string): string {
  return existsSync(path) ? realpathSync(path) : path;
}

/** How many sessions to unload over one connection. The number is limited, because a connection has a time limit. */
const AT_ONCE = 100;

/**
 * A term is a period in which the other hosts consider this host alive without interruption. This class does the work
 * that is due when a term begins or ends.
 */
export class Terms {
  readonly #context: ServeContext;

  constructor(context: ServeContext) {
    this.#context = context;
  }

  /**
   * Records the term on sessions that this host created before it had shared storage. Without a term, no other host may
   * take them over.
   */
  async claimSessions(host: string, term: number): Promise<void> {
    const { store } = this.#context;
    for (const { id } of (await sessionsOfThisHost(store)).filter((record) => record.term === undefined)) {
      await store.sessions.update(id, (draft) => {
        if (draft.term === undefined && (draft.host ?? host) === host) Object.assign(draft, { host, term });
      });
    }
  }

  /** Call this when a term is over. Other hosts may then count this host as gone and take over its sessions. */
  over(): void {
    const { config, state } = this.#context;
    // Other hosts can take over only sessions in shared storage. Without it, the door stays connected to its servers.
    if (config.storage.shared !== null) state.door?.leaveServers();
  }

  /**
   * Call this when a new term begins after other hosts considered this host gone. Unloads the sessions that another
   * host has taken, but that are still in the memory of this host's servers. Unloads them even while somebody uses
   * them, because nothing that a server writes to this host's copy is kept. Never rejects.
   */
  async begun(): Promise<void> {
    await attempt(this.#context, "the sessions that other hosts took over could not be unloaded", async () => {
      const { servers } = await this.#context.store.registry.read();
      for (const server of Object.values(servers).filter(isRunning)) await unloadTaken(server, this.#context);
    });
  }
}

async function unloadTaken(server: ServerRecord, context: ServeContext): Promise<void> {
  const { store, config, directory, log } = context;
  const taken: string[] = [];
  // Once another host has copied a session, nothing on this host shows whether a server still has it loaded. So include
  // all taken sessions.
  for (const id of new Set([...loadedSessions(server), ...listTakenSessions(server.home)])) {
    const record = isSessionId(id) ? await store.sessions.read(id) : null;
    if (record?.host !== undefined && record.host !== directory.own) taken.push(id);
  }
  if (taken.length === 0) return;
  for (let start = 0; start < taken.length; start += AT_ONCE) {
    await unloadAtOnce(server, taken.slice(start, start + AT_ONCE), config.health.timeoutMs);
  }
  log(
    "warn",
    `server ${server.id} may have had ${countOf(taken.length, "session")} in memory that other hosts have now`,
    {
      server: server.id,
      sessions: taken,
    },
  );
}
