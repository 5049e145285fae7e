/**
 * The names of all keys. The braces put them into one hash slot (Redis Cluster specification), so that a script may use
 * several of them.
 *
 * @param fleet the name of the fleet. It comes only from the database's URL, so that everybody with the same URL uses the
 * same fleet.
 * @param host the host that owns the registry; null for a fleet without named hosts
 */
export function keysOf(fleet: string, host: string | null) {
  const key = (name: string) => `copilotfleet:{${fleet}}:${name}`;
  const ofHost = (name: string, owner: string | null) => key(owner === null ? name : `${name}:${owner}`);
  const lock = {
    /**
     * The token of the writer that holds the writer lock of the registry. This name followed by `:<token>` is the
     * channel to which a writer subscribes.
     */
    writerLock: ofHost("writer", host),
    /** The writers that wait for the lock, in the order of their arrival. */
    writerQueue: ofHost("writer-queue", host),
    /** The same writers as in `writerQueue`, each with the time at which it loses its place. */
    writerPlaces: ofHost("writer-places", host),
  };
  return {
    ...lock,
    writerLockKeys: [lock.writerLock, lock.writerQueue, lock.writerPlaces] as const,
    /** The schema and the random id of this database's data. Written once and never changed. */
    epoch: key("epoch"),
    /** Created together with the epoch. In a fleet without named hosts, this is the registry. */
    founding: key("registry"),
    registry: ofHost("registry", host),
    registryOf: (owner: string | null) => ofHost("registry", owner),
    sessions: key("sessions"),
    session: (id: string) => key(`session:${id}`),
    ownedBy: (user: string) => key(`owned:${user}`),
    tokens: key("tokens"),
    token: (id: string) => key(`token:${id}`),
    /** The time of the token's last use. */
    tokenUsed: (id: string) => key(`token-used:${id}`),
    /** The set of all users who have a placement. */
    placements: key("placements"),
    placement: (user: string) => key(`placement:${user}`),
    /** The set of all prompts that were sent with an idempotency key. */
    keyedTurns: key("keyed-turns"),
    /** The set of one user's prompts that were sent with an idempotency key. */
    keyedTurnsOf: (user: string) => key(`keyed-turns:${user}`),
    /** The name consists of a digest of the user and a digest of the idempotency key. */
    keyedTurn: (name: string) => key(`keyed-turn:${name}`),
    /** The set of the purges under way, by digests of their users. */
    purges: key("purges"),
    purge: (name: string) => key(`purge:${name}`),
    pseudonymKey: key("pseudonym-key"),
    /** How far the ledger of each host has been counted: see usage-scripts.ts. */
    usageRead: key("usage-read"),
    /** All hours of the ledger. */
    usageHours: key("usage-hours"),
    /** The hours whose lines have not been deleted. */
    usageLined: key("usage-lined"),
    usageCells: (day: string) => key(`usage-cells:${day}`),
    usageSums: (hour: number) => key(`usage-sums:${hour}`),
    usageMinutes: (hour: number) => key(`usage-minutes:${hour}`),
    usageLines: (hour: number) => key(`usage-lines:${hour}`),
    /** The tokens of each user on one day. */
    usageTokens: (day: string) => key(`usage-tokens:${day}`),
    /** The set of all users who have limits of their own, or groups. */
    limits: key("limits"),
    limitsOf: (user: string) => key(`limits:${user}`),
    /** The slots of one kind that a user has, each with the time at which it ends. */
    slots: (kind: string, user: string) => key(`slots:${kind}:${user}`),
    /** The turns that the user began in the last minute. */
    begun: (user: string) => key(`begun:${user}`),
    /** The last period in which a budget of the user was nearly used up. */
    near: (user: string, name: string) => key(`near:${name}:${user}`),
    hosts: key("hosts"),
    host: (name: string) => key(`host:${name}`),
    /** The highest fence so far. Never expires. */
    fence: key("fence"),
    /** A Redis hash with the lease. It expires together with the lease. */
    lease: (sessionId: string) => key(`lease:${sessionId}`),
    /** The hashes of waiting tokens, in the order of their first request. */
    queue: (sessionId: string) => key(`queue:${sessionId}`),
    /** The same hashes as in `queue`, each with the time at which it loses its place. */
    places: (sessionId: string) => key(`places:${sessionId}`),
    /** The commit key, which exists for a while after a commit: see document-scripts.ts. */
    commit: (id: string) => key(`commit:${id}`),
  };
}

export type Keys = ReturnType<typeof keysOf>;
