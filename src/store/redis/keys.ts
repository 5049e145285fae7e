/**
 * The names of all keys. The braces make them one hash slot (Redis Cluster specification), so that a script may touch
 * several. The fleet's name comes from the database's URL alone: whoever has that URL means the same fleet.
 */
export class Keys {
  /** `copilotfleet:{<fleet>}:` */
  readonly prefix: string;
  /** Schema and random id of this database's life; made once and never changed. */
  readonly epoch: string;
  /** Comes into being with the epoch, so that one without the other is a loss. The registry of a fleet without named hosts. */
  readonly founding: string;
  /** The registry of this host. */
  readonly registry: string;
  /** The writer of the registry whose turn it is; expires soon. With `:<writer>` behind it the channel that it listens to. */
  readonly turn: string;
  /** Writers that wait for it, by arrival, and by the time at which each loses its place. */
  readonly turnQueue: string;
  readonly turnPlaces: string;
  /** The set of all sessions' ids. */
  readonly sessions: string;
  /** The set of all tokens' ids. */
  readonly tokens: string;
  /** The set of all users that were placed. */
  readonly placements: string;
  /** The set of all hosts' names. */
  readonly hosts: string;
  /** The highest fence given out. Never expires. */
  readonly fence: string;

  /** @param host Whose registry it is; null for a fleet that knows no hosts. */
  constructor(fleet: string, host: string | null = null) {
    this.prefix = `copilotfleet:{${fleet}}:`;
    this.epoch = `${this.prefix}epoch`;
    this.founding = `${this.prefix}registry`;
    this.registry = this.registryOf(host);
    this.turn = `${this.prefix}turn${suffix(host)}`;
    this.turnQueue = `${this.prefix}turn-queue${suffix(host)}`;
    this.turnPlaces = `${this.prefix}turn-places${suffix(host)}`;
    this.placements = `${this.prefix}placements`;
    this.hosts = `${this.prefix}hosts`;
    this.sessions = `${this.prefix}sessions`;
    this.tokens = `${this.prefix}tokens`;
    this.fence = `${this.prefix}fence`;
  }

  get turnKeys(): readonly [turn: string, queue: string, places: string] {
    return [this.turn, this.turnQueue, this.turnPlaces];
  }

  registryOf(host: string | null): string {
    return `${this.prefix}registry${suffix(host)}`;
  }

  /** A host's entry in the directory. */
  host(name: string): string {
    return `${this.prefix}host:${name}`;
  }

  session(id: string): string {
    return `${this.prefix}session:${id}`;
  }

  /** The set of the ids of one user's sessions. */
  ownedBy(user: string): string {
    return `${this.prefix}owned:${user}`;
  }

  /** A token of the front door. */
  token(id: string): string {
    return `${this.prefix}token:${id}`;
  }

  /** Where a user was placed. */
  placement(user: string): string {
    return `${this.prefix}placement:${user}`;
  }

  /** A hash, which expires with the lease. */
  lease(sessionId: string): string {
    return `${this.prefix}lease:${sessionId}`;
  }

  /** Hashes of waiting tokens, in the order in which they first asked. */
  queue(sessionId: string): string {
    return `${this.prefix}queue:${sessionId}`;
  }

  /** The same hashes, by the time at which each loses its place. */
  places(sessionId: string): string {
    return `${this.prefix}places:${sessionId}`;
  }

  /** Says for a while that a commit was made: for a writer whom the answer did not reach. */
  commit(id: string): string {
    return `${this.prefix}commit:${id}`;
  }
}

function suffix(host: string | null): string {
  return host === null ? "" : `:${host}`;
}
