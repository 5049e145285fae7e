/**
 * The names of all keys. The braces put them into one hash slot (Redis Cluster specification), so that a script may use
 * several of them. The fleet's name comes from the database's URL alone, so that everybody with the same URL uses the
 * same fleet.
 */
export class Keys {
  /** `copilotfleet:{<fleet>}:` */
  readonly prefix: string;
  /** The schema and the random id of this database's data. Written once and never changed. */
  readonly epoch: string;
  /**
   * Created together with the epoch, so data was lost if only one of them exists. This is also the registry of a fleet
   * without named hosts.
   */
  readonly founding: string;
  /** The registry of this host. */
  readonly registry: string;
  /**
   * The token of the writer that holds the writer lock of the registry. It expires soon. Followed by `:<writer>`, this
   * is also the name of the channel that the writer subscribes to. Its keys are called `turn`, because databases of
   * earlier versions have them.
   */
  readonly writerLock: string;
  /** The writers that wait for the lock, by arrival, and by the time at which each loses its place. */
  readonly writerQueue: string;
  readonly writerPlaces: string;
  /** The set of all session ids. */
  readonly sessions: string;
  /** The set of all token ids. */
  readonly tokens: string;
  /** The set of all users who were placed. */
  readonly placements: string;
  /** The set of all host names. */
  readonly hosts: string;
  /** The highest fence that was given out. Never expires. */
  readonly fence: string;

  /** @param host The host that owns the registry; null for a fleet without named hosts. */
  constructor(fleet: string, host: string | null = null) {
    this.prefix = `copilotfleet:{${fleet}}:`;
    this.epoch = `${this.prefix}epoch`;
    this.founding = `${this.prefix}registry`;
    this.registry = this.registryOf(host);
    this.writerLock = `${this.prefix}turn${suffix(host)}`;
    this.writerQueue = `${this.prefix}turn-queue${suffix(host)}`;
    this.writerPlaces = `${this.prefix}turn-places${suffix(host)}`;
    this.placements = `${this.prefix}placements`;
    this.hosts = `${this.prefix}hosts`;
    this.sessions = `${this.prefix}sessions`;
    this.tokens = `${this.prefix}tokens`;
    this.fence = `${this.prefix}fence`;
  }

  get writerLockKeys(): readonly [lock: string, queue: string, places: string] {
    return [this.writerLock, this.writerQueue, this.writerPlaces];
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

  /** The set of a user's session ids. */
  ownedBy(user: string): string {
    return `${this.prefix}owned:${user}`;
  }

  /** A token of the front door. */
  token(id: string): string {
    return `${this.prefix}token:${id}`;
  }

  placement(user: string): string {
    return `${this.prefix}placement:${user}`;
  }

  /** A hash that expires with the lease. */
  lease(sessionId: string): string {
    return `${this.prefix}lease:${sessionId}`;
  }

  /** The hashes of waiting tokens, in the order of their first request. */
  queue(sessionId: string): string {
    return `${this.prefix}queue:${sessionId}`;
  }

  /** The same hashes, by the time at which each loses its place. */
  places(sessionId: string): string {
    return `${this.prefix}places:${sessionId}`;
  }

  /** The commit key. It exists for a while after a commit, so that a writer that got no answer can find out. */
  commit(id: string): string {
    return `${this.prefix}commit:${id}`;
  }
}

function suffix(host: string | null): string {
  return host === null ? "" : `:${host}`;
}
