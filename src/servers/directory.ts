import { FleetError, isFleetError, quote } from "../base/errors.js";
import { admitting, type HostRecord } from "../base/host.js";
import { isOwnedBy, type Ownership, type SessionRecord } from "../base/session.js";
import { type Address, parseAddress } from "../config/rules.js";
import type { Config } from "../config/schema.js";
import { hasHostFolder, placesOf } from "../runtime/files/shared-storage.js";
import { showAddress } from "../runtime/launch/listen.js";
import type { HostTable } from "../store/hosts.js";
import type { Store } from "../store/store.js";
import { rendezvousChoice } from "./placement.js";

/** The host that has a user or a session: this host, or another live host. */
export type Whereabouts = { here: true } | { here: false; host: HostRecord };

interface DirectoryContext {
  store: Store;
  config: Pick<Config, "storage">;
}

const HERE: Whereabouts = { here: true };

/** How long this process relies on its last read of the hosts, in milliseconds. Any host, even this one, may leave. */
export const SEEN_MS = 1_000;
/** This host stops relying on its term this many milliseconds before the term may end. */
const MARGIN_MS = 200;

/**
 * Finds the host that has a session or a user, in a fleet on several hosts. A host with its own storage keeps its
 * sessions even while it is down. With shared storage, a host has its sessions only during its current term. Any host
 * may take over the sessions of an earlier term.
 */
export class HostDirectory {
  readonly #store: Store;
  readonly #hosts: HostTable | null;
  readonly #shared: string | null;
  #seen: { hosts: HostRecord[]; at: number } | undefined;

  constructor({ store, config }: DirectoryContext) {
    this.#store = store;
    this.#hosts = store.hosts;
    this.#shared = config.storage.shared;
  }

  /** The name of this host. Null if the store serves a single host. */
  get own(): string | null {
    return this.#hosts?.own ?? null;
  }

  /** Whether sessions may move between hosts. */
  get isShared(): boolean {
    return this.#shared !== null && this.#hosts !== null;
  }

  async list(): Promise<HostRecord[]> {
    if (this.#hosts === null) return [];
    const asked = performance.now();
    const hosts = await this.#hosts.list();
    this.#seen = { hosts, at: asked };
    return hosts;
  }

  /**
   * The name of this host, and with shared storage its current term, as the records of its sessions have them.
   * Undefined in a fleet on one host.
   *
   * @throws FleetError `FLEET_HOST_AWAY` when hosts share storage and this host does not serve.
   */
  async ownership(): Promise<Ownership | undefined> {
    if (this.#hosts === null) return undefined;
    const { own } = this.#hosts;
    return this.isShared ? { host: own, term: await this.#ownTerm(own) } : { host: own };
  }

  async #ownTerm(own: string): Promise<number> {
    const known = this.#recent(({ name }) => name === own);
    // Like a lease, a term protects this host's sessions until the time that the store granted has passed.
    if (known !== undefined && known.host.remainingMs - known.ageMs > MARGIN_MS) return known.host.term;
    const fresh = (await this.list()).find(({ name }) => name === own);
    if (fresh === undefined || fresh.gone || fresh.remainingMs <= MARGIN_MS) throw ownHostAway(own);
    return fresh.term;
  }

  /**
   * The host for which `isMeant` is true, from the last read of the hosts. Undefined if there is none, or if that read
   * is too old.
   */
  #recent(isMeant: (host: HostRecord) => boolean): { host: HostRecord; ageMs: number } | undefined {
    const ageMs = performance.now() - (this.#seen?.at ?? Number.NEGATIVE_INFINITY);
    const host = ageMs < SEEN_MS ? this.#seen?.hosts.find(isMeant) : undefined;
    return host && { host, ageMs };
  }

  /** Whether this host has the session now, and so may open it. @throws as {@link ownership}. */
  async has(record: SessionRecord): Promise<boolean> {
    return isOwnedBy(record, await this.ownership());
  }

  /**
   * Verifies that the shared storage is mounted. Call this before you create files in the storage, and before you
   * conclude from a missing file that it was deleted. The check passes on a host that has never served, because it has
   * no files in the storage.
   */
  async assertStorage(): Promise<void> {
    const shared = this.#shared;
    if (this.#hosts === null || shared === null) return;
    const { own } = this.#hosts;
    if (await hasHostFolder(shared, own)) return;
    const served = (await this.list()).some(({ name, storage }) => name === own && storage !== null);
    if (served) throw notMounted(shared, own);
  }

  /** The folders of this host's sessions in the shared storage, by server group. */
  async places(): Promise<ReadonlyMap<string, string>> {
    if (this.#hosts === null || this.#shared === null) return new Map();
    return await placesOf(this.#shared, this.#hosts.own);
  }

  /**
   * Like {@link has} for many records: returns the check as a function. If hosts share storage and this host does not
   * serve, the function always returns false.
   */
  async holds(): Promise<(record: SessionRecord) => boolean> {
    const owns = await this.#ownershipIfThere();
    return (record) => owns !== null && isOwnedBy(record, owns);
  }

  /** Whether this host may have sessions now: it serves, or it has its own storage. */
  async isThere(): Promise<boolean> {
    return (await this.#ownershipIfThere()) !== null;
  }

  /** Like {@link ownership}, but null if this host does not serve. */
  async #ownershipIfThere(): Promise<Ownership | undefined | null> {
    try {
      return await this.ownership();
    } catch (error) {
      if (isFleetError(error, "FLEET_HOST_AWAY")) return null;
      throw error;
    }
  }

  /**
   * The host that has a session. If no host has the session, the host on which its owner is placed.
   *
   * @throws FleetError `FLEET_HOST_AWAY` when the session is on the disk of another host, which is not alive;
   *   `FLEET_HOST_AWAY` when hosts share storage and no live host can have the session.
   */
  async whereIs(record: SessionRecord): Promise<Whereabouts> {
    if (this.#hosts === null) return HERE;
    const { own } = this.#hosts;
    if (!this.isShared) {
      if ((record.host ?? own) === own) return HERE;
      const host = await this.#find(record.host ?? "");
      if (host === undefined) throw sessionStranded(record);
      return this.#at(host);
    }
    const holder = record.host === undefined ? undefined : await this.#find(record.host, record.term);
    if (record.host !== undefined && record.term === undefined) {
      // The session was created before the hosts shared storage. Only its host can move it to the shared storage.
      if (holder === undefined) throw record.host === own ? ownHostAway(own) : sessionStranded(record);
      return this.#at(holder);
    }
    return holder !== undefined ? this.#at(holder) : await this.place(record.owner);
  }

  #at(host: HostRecord): Whereabouts {
    return host.name === this.own ? HERE : { here: false, host };
  }

  /** Whether the session is on the disk of a host that is not alive. */
  async isStranded({ host }: SessionRecord): Promise<boolean> {
    if (this.#hosts === null || this.isShared || host === undefined || host === this.#hosts.own) return false;
    return (await this.#find(host)) === undefined;
  }

  /** The live host with this name and term. Reads the hosts again if the last read does not show that host. */
  async #find(name: string, term?: number): Promise<HostRecord | undefined> {
    const isMeant = (host: HostRecord) =>
      host.name === name && !host.gone && (term === undefined || host.term === term);
    const known = this.#recent(isMeant)?.host;
    // A host that has just started publishes the address of its front door a moment later, so read again.
    const isEnough = known !== undefined && (known.door !== null || known.name === this.own);
    return isEnough ? known : (await this.list()).find(isMeant);
  }

  /**
   * Returns the live host on which the user is placed. If there is none, places the user on the host with the highest
   * score. With shared storage, a placement on a draining host does not count.
   */
  async place(user: string): Promise<Whereabouts> {
    if (this.#hosts === null) return HERE;
    const { own } = this.#hosts;
    const recorded = await this.#store.placements.read(user);
    if (recorded?.host !== undefined) {
      const host = await this.#find(recorded.host);
      if (host !== undefined && !this.#leaves(host)) return this.#at(host);
    }
    const hosts = admitting(await this.list());
    if (hosts.length === 0) {
      // No host serves. With its own storage, this host can do the work, as in a fleet on a single host.
      if (this.isShared) throw ownHostAway(own);
      return HERE;
    }
    const names = hosts.map((host) => host.name);
    const name = rendezvousChoice(user, names);
    // Record no server, because the chosen host picks the shared server itself.
    const placed = await this.#store.placements.record(user, recorded, { host: name, serverId: null });
    const host = hosts.find((each) => each.name === (placed.host ?? name));
    // If another process has just placed the user on a host that started after our read, read again.
    return host === undefined ? await this.place(user) : this.#at(host);
  }

  /** The host that {@link place} would choose, and the reason. Null if the store serves a single host. */
  async foresee(user: string): Promise<{ host: string; reason: string } | null> {
    if (this.#hosts === null) return null;
    const hosts = await this.list();
    const recorded = (await this.#store.placements.read(user))?.host;
    const host = hosts.find(({ name, gone }) => name === recorded && !gone);
    if (host !== undefined && !this.#leaves(host))
      return { host: host.name, reason: "the user was placed on that host" };
    const names = admitting(hosts).map(({ name }) => name);
    if (names.length === 0) return { host: this.#hosts.own, reason: "no host serves" };
    const why = recorded === undefined ? "" : `host ${recorded} does not serve, and `;
    const reason = `${why}the host has the highest score for the user among ${names.length}`;
    return { host: rendezvousChoice(user, names), reason };
  }

  /**
   * Whether users should move away from the host. With shared storage, they move once it drains, because another host
   * can take over their sessions.
   */
  #leaves({ state }: HostRecord): boolean {
    return this.isShared && state === "draining";
  }
}

/** Removes the records of hosts that are gone and that no session's record names. Such a host may join again later. */
export async function forgetEmptyHosts(store: Store): Promise<void> {
  const { hosts } = store;
  if (hosts === null) return;
  const gone = (await hosts.list()).filter((host) => host.gone);
  if (gone.length === 0) return;
  const unreadable: string[] = [];
  const records = await store.sessions.list((id) => void unreadable.push(id));
  if (unreadable.length > 0) return; // such a record may name any host
  const named = new Set(records.flatMap(({ host, from }) => [host, from?.host]));
  for (const { name } of gone) if (!named.has(name)) await hosts.forget(name);
}

/** The prefix of a recorded front-door address with TLS. */
const TLS = "tls://";

interface Door {
  address: string;
  port: number;
  hasTls: boolean;
}

/** The front door of a host. @throws FleetError `FLEET_HOST_AWAY` when the host is gone or has no front door. */
export function doorOf({ name, gone, door }: HostRecord): Door {
  const hasTls = door?.startsWith(TLS) === true;
  const address = gone || door === null ? null : parseAddress(hasTls ? door.slice(TLS.length) : door);
  if (address === null) throw hostAway(name);
  return { address: address.host, port: address.port, hasTls };
}

/** The address of this host's front door, as the host announces it. */
export function announcedDoor(address: Address, hasTls: boolean): string {
  return `${hasTls ? TLS : ""}${showAddress(address)}`;
}

/** The error when this host does not serve. Other hosts may then take over its sessions, so it must not open them. */
function ownHostAway(own: string, cause?: unknown): FleetError {
  const message = `This host, ${quote(own)}, does not serve, so other hosts may take over its sessions in the shared storage.`;
  return new FleetError("FLEET_HOST_AWAY", message, {
    suggestions: ["copilotfleet serve", "copilotfleet top --once"],
    cause,
  });
}

/** The error when the shared storage lacks the folder of this host, for example because nothing is mounted there. */
function notMounted(shared: string, own: string): FleetError {
  const message = `The folder ${quote(shared)} is not the folder that host ${quote(own)} shares with other hosts, or it is not mounted.`;
  return new FleetError("FLEET_STORAGE_UNUSABLE", message, {
    suggestions: [`findmnt --target ${shared}`, "copilotfleet doctor"],
  });
}

export function hostAway(name: string, cause?: unknown): FleetError {
  return new FleetError("FLEET_HOST_AWAY", `Host ${quote(name)} cannot be reached.`, {
    suggestions: ["copilotfleet top --once", `copilotfleet serve # on host ${name}`, "Try again in a minute."],
    cause,
  });
}

export function sessionStranded({ id, host = "" }: SessionRecord): FleetError {
  const message = `Session ${quote(id)} is on the disk of host ${quote(host)}, which does not serve.`;
  return new FleetError("FLEET_HOST_AWAY", message, {
    suggestions: [`copilotfleet serve  # on host ${host}`, "copilotfleet top --once"],
    retryable: false,
  });
}

/** The error when the user is placed on another host. The front door then relays the client to that host. */
export function userMoved(user: string, to: Pick<HostRecord, "name">): FleetError {
  return new FleetError("FLEET_SESSION_MOVED", `User ${quote(user)} is now placed on host ${quote(to.name)}.`, {
    suggestions: ["Try again: you are relayed to the host that has the user's sessions.", "copilotfleet top --once"],
  });
}

/** The error when another host has the session. The caller tries again on that host. */
export function sessionMoved({ id }: Pick<SessionRecord, "id">, to: Pick<HostRecord, "name"> | null): FleetError {
  const where = to === null ? "is about to move to another host" : `is now on host ${quote(to.name)}`;
  return new FleetError("FLEET_SESSION_MOVED", `Session ${quote(id)} ${where}.`, {
    suggestions: ["Try again: you are relayed to the host that has it.", "copilotfleet top --once"],
  });
}
