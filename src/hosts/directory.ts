import type { Config } from "../config/schema.js";
import { isFleetError } from "../errors.js";
import { rendezvous } from "../pool/rendezvous.js";
import { placesOf } from "../runtime/shared-storage.js";
import type { HostRecord, Hosts, SessionRecord, Store } from "../store/store.js";
import { hasOwnBeacon, notMounted } from "./beacon.js";
import { ownHostAway, sessionStranded } from "./problems.js";

/** Where something is: on this host, or on another one that is there. */
export type Whereabouts = { here: true } | { here: false; host: HostRecord };

const HERE: Whereabouts = { here: true };

/** How long the look at a host that was there counts, in milliseconds; also at this one, which may have left since. */
export const SEEN_MS = 1_000;
/** A term counts until this long before it may end, in milliseconds. */
const MARGIN_MS = 200;

export interface DirectoryContext {
  store: Store;
  config: Pick<Config, "storage">;
}

/**
 * Which host has what, of a fleet on several. A session is on the host that its record names, and stays there while that is
 * there; a user goes to the host that the user was placed on.
 *
 * With storage of their own, hosts keep what they have, also while they are away. With shared storage a host has its sessions
 * for the term that its heartbeats make: what it had in an earlier one, or was gone with, is whoever's takes it first.
 */
export class HostDirectory {
  readonly #store: Store;
  readonly #hosts: Hosts | null;
  readonly #shared: string | null;
  #seen: { hosts: HostRecord[]; at: number } | undefined;

  constructor({ store, config }: DirectoryContext) {
    this.#store = store;
    this.#hosts = store.hosts;
    this.#shared = config.storage.shared;
  }

  /** The name of this host; null where the store is one host's alone. */
  get own(): string | null {
    return this.#hosts?.own ?? null;
  }

  /** Whether sessions may change hosts. */
  get isShared(): boolean {
    return this.#shared !== null && this.#hosts !== null;
  }

  /** All hosts, as they are now. */
  async list(): Promise<HostRecord[]> {
    if (this.#hosts === null) return [];
    const asked = performance.now();
    const hosts = await this.#hosts.list();
    this.#seen = { hosts, at: asked };
    return hosts;
  }

  /**
   * What a session's record has to say for it to be here. Undefined where the store is one host's alone; the term is absent
   * with storage of the host's own.
   *
   * @throws FleetError `FLEET_HOST_AWAY` with shared storage, when this host does not serve.
   */
  async ownership(): Promise<{ host: string; term?: number } | undefined> {
    if (this.#hosts === null) return undefined;
    const { own } = this.#hosts;
    return this.isShared ? { host: own, term: await this.#ownTerm(own) } : { host: own };
  }

  async #ownTerm(own: string): Promise<number> {
    const known = this.#seen?.hosts.find(({ name }) => name === own);
    // Nobody can take what is this host's before the end that the store gave it: as with a lease.
    const ageMs = performance.now() - (this.#seen?.at ?? 0);
    const left = (known?.remainingMs ?? 0) - ageMs;
    if (known !== undefined && ageMs < SEEN_MS && left > MARGIN_MS) return known.term;
    const fresh = (await this.list()).find(({ name }) => name === own);
    if (fresh === undefined || fresh.gone || fresh.remainingMs <= MARGIN_MS) throw ownHostAway(own);
    return fresh.term;
  }

  /** Whether this host has the session at this moment, and may open it. @throws as {@link ownership}. */
  async has(record: SessionRecord): Promise<boolean> {
    return isOf(record, await this.ownership());
  }

  /**
   * Makes sure that the storage which hosts share is there, before anything is made in it, or what is not in it is taken for
   * gone. A host that never served has nothing there yet.
   *
   * @throws FleetError `FLEET_STORAGE_UNUSABLE`.
   */
  async assertStorage(): Promise<void> {
    const shared = this.#shared;
    if (this.#hosts === null || shared === null) return;
    const { own } = this.#hosts;
    const isOwn = ({ name }: HostRecord) => name === own;
    const known = performance.now() - (this.#seen?.at ?? 0) < SEEN_MS ? this.#seen?.hosts.find(isOwn) : undefined;
    if (known !== undefined && (await hasOwnBeacon(shared, known))) return;
    // A `serve` that was started a moment ago has lit another one.
    const fresh = (await this.list()).find(isOwn);
    if (fresh !== undefined && !(await hasOwnBeacon(shared, fresh))) throw notMounted(shared, fresh);
  }

  /** Where this host has sessions in the shared storage, by the groups of servers; nowhere with storage of its own. */
  async places(): Promise<ReadonlyMap<string, string>> {
    if (this.#hosts === null || this.#shared === null) return new Map();
    return await placesOf(this.#shared, this.#hosts.own);
  }

  /** Tells which sessions this host has at this moment. None with shared storage, when it does not serve. */
  async holds(): Promise<(record: SessionRecord) => boolean> {
    try {
      const owns = await this.ownership();
      return (record) => isOf(record, owns);
    } catch (error) {
      if (!isFleetError(error, "FLEET_HOST_AWAY")) throw error;
      return () => false;
    }
  }

  /** Whether this host may have sessions at this moment: where the store is one host's alone, or storage its own, always. */
  async isThere(): Promise<boolean> {
    try {
      await this.ownership();
      return true;
    } catch (error) {
      if (isFleetError(error, "FLEET_HOST_AWAY")) return false;
      throw error;
    }
  }

  /**
   * Where a session is, or where it goes now that nobody has it: to the host of its owner.
   *
   * @throws FleetError `FLEET_HOST_AWAY`; `FLEET_SESSION_STRANDED` when it is on the disk of a host that is not there.
   */
  async whereIs(record: SessionRecord): Promise<Whereabouts> {
    if (this.#hosts === null) return HERE;
    const { own } = this.#hosts;
    if (!this.isShared) {
      if ((record.host ?? own) === own) return HERE;
      const host = await this.#find(record.host ?? "");
      if (host === undefined) throw sessionStranded(record);
      return { here: false, host };
    }
    const holder = record.host === undefined ? undefined : await this.#find(record.host, record.term);
    if (record.host !== undefined && record.term === undefined) {
      // From a time when hosts had storage of their own: only that one has it, and puts it where all can get at it.
      if (holder === undefined) throw record.host === own ? ownHostAway(own) : sessionStranded(record);
      return holder.name === own ? HERE : { here: false, host: holder };
    }
    const isHeld = holder !== undefined && record.released !== true;
    if (!isHeld) return await this.place(record.owner);
    return holder.name === own ? HERE : { here: false, host: holder };
  }

  /** Whether a session is on the disk of a host that is not there. */
  async isStranded({ host }: SessionRecord): Promise<boolean> {
    if (this.#hosts === null || this.isShared || host === undefined || host === this.#hosts.own) return false;
    return (await this.#find(host)) === undefined;
  }

  /** The host if it is there. One that was seen a moment ago is taken to be; one that was not is looked for. */
  async #find(name: string, term?: number): Promise<HostRecord | undefined> {
    const isMeant = (host: HostRecord) =>
      host.name === name && !host.gone && (term === undefined || host.term === term);
    const among = (hosts: HostRecord[]) => hosts.find(isMeant);
    const { hosts, at } = this.#seen ?? { hosts: [], at: Number.NEGATIVE_INFINITY };
    const known = performance.now() - at < SEEN_MS ? among(hosts) : undefined;
    // One that has just come says a moment later where its front door is.
    const isEnough = known !== undefined && (known.door !== null || known.name === this.own);
    return isEnough ? known : among(await this.list());
  }

  /**
   * Where a user goes: where the user was placed, while that is there; otherwise to the host that has the highest score for
   * the user among those that are, which is recorded.
   *
   * @throws FleetError `FLEET_HOST_AWAY` with shared storage, when no host serves.
   */
  async place(user: string): Promise<Whereabouts> {
    if (this.#hosts === null) return HERE;
    const { own } = this.#hosts;
    const recorded = await this.#store.readPlacement(user);
    if (recorded?.host !== undefined) {
      const host = await this.#find(recorded.host);
      if (host !== undefined && !this.#leaves(host)) return host.name === own ? HERE : { here: false, host };
    }
    const hosts = admitting(await this.list());
    if (hosts.length === 0) {
      // No host serves: what is asked of this one happens here, as on a single host.
      if (this.isShared) throw ownHostAway(own);
      return HERE;
    }
    const name = rendezvous(
      user,
      hosts.map((host) => host.name),
    );
    // The shared server there is for that host to choose.
    const placed = await this.#store.recordPlacement(user, recorded, { host: name, serverId: null });
    const host = hosts.find((each) => each.name === (placed.host ?? name));
    // Another host has placed the user at the same moment, on one that has come since the look.
    if (host === undefined) return await this.place(user);
    return host.name === own ? HERE : { here: false, host };
  }

  /** Where {@link place} would have a user go, and why. Records nothing. Null where the store is one host's alone. */
  async foresee(user: string): Promise<{ host: string; reason: string } | null> {
    if (this.#hosts === null) return null;
    const hosts = await this.list();
    const recorded = (await this.#store.readPlacement(user))?.host;
    const host = hosts.find(({ name, gone }) => name === recorded && !gone);
    if (host !== undefined && !this.#leaves(host))
      return { host: host.name, reason: "the user was placed on that host" };
    const names = admitting(hosts).map(({ name }) => name);
    if (names.length === 0) return { host: this.#hosts.own, reason: "no host serves" };
    const why = recorded === undefined ? "" : `host ${recorded} is not there, and `;
    return {
      host: rendezvous(user, names),
      reason: `${why}the host has the highest score for the user among ${names.length}`,
    };
  }

  /** A user whose sessions can go along does not wait for a host that is about to end. */
  #leaves({ state }: HostRecord): boolean {
    return this.isShared && state === "draining";
  }
}

function isOf(record: SessionRecord, owns: { host: string; term?: number } | undefined): boolean {
  if (owns === undefined) return true;
  // With storage of its own a host has what it has, whatever was meant to become of it.
  if (owns.term !== undefined && (record.released === true || record.from !== undefined)) return false;
  return (record.host ?? owns.host) === owns.host && (owns.term === undefined || record.term === owns.term);
}

/** The hosts that take users. One without a front door cannot be reached by others. */
export function admitting(hosts: readonly HostRecord[]): HostRecord[] {
  return hosts.filter(({ gone, state, door }) => !gone && state === "serving" && door !== null);
}
