import { isFleetError } from "../../errors.js";
import type { HostRecord } from "../../model/host.js";
import { newSessionId, serverIdOf } from "../../model/ids.js";
import { newSessionRecord, type SessionRecord } from "../../model/session.js";
import type { CreateOptions, SessionsElsewhere } from "../../sessions/open-sessions.js";
import { sessionExists } from "../../sessions/problems.js";
import type { Sessions } from "../../sessions/sessions.js";
import { ownUse } from "../../sessions/use/open-session.js";
import type { FleetHosts } from "../fleet-hosts.js";
import { RemoteHost } from "../remote-host.js";
import { type RemoteOpenOptions, RemoteSession } from "./remote-session.js";

/**
 * Creates and opens sessions on other hosts, through the front doors of these hosts. `OpenSessions` and `SessionFinder` call
 * it by the interfaces that they define.
 */
export class RemoteSessions implements SessionsElsewhere {
  readonly #sessions: Sessions;
  readonly #hosts: FleetHosts;
  #looking: Promise<unknown> = Promise.resolve();

  constructor(sessions: Sessions, hosts: FleetHosts) {
    this.#sessions = sessions;
    this.#hosts = hosts;
  }

  /**
   * Creates a session for a user who is placed on another host. First records the session. Then opens it at that host's
   * front door. The front door then creates the session on a server of that host, because the session never had a turn.
   */
  async create(host: HostRecord, options: CreateOptions): Promise<RemoteSession> {
    const { store, config, directory } = this.#sessions.context;
    const { user, signal } = options;
    const there = new RemoteHost(host, this.#sessions.context);
    const id = options.id ?? newSessionId();
    const known = await store.sessions.read(id);
    if (known !== null) throw sessionExists(id, user, known);
    // If the other host's disk has a session with this id, the runtime would silently continue it. A random id cannot
    // be there.
    if (options.id !== undefined && (await isThere(there, id, user, signal))) throw sessionExists(id, user, null);
    const serverId =
      config.isolation === "shared" ? (await there.serverFor({ user, request: {} }, { signal })).id : serverIdOf(user);
    const ephemeralUse = options.ephemeral === true ? ownUse(directory) : undefined;
    const place = { serverId, host: host.name, ...(directory.isShared ? { term: host.term } : {}) };
    const record = newSessionRecord({ ...options, id, owner: user, ephemeralUse }, place);
    await this.#sessions.record(record);
    try {
      return await this.open(record, host, options);
    } catch (error) {
      // Nobody has used the session, so free its id after the failure.
      await store.sessions.delete(id);
      throw error;
    }
  }

  async open(record: SessionRecord, host: HostRecord, options: RemoteOpenOptions): Promise<RemoteSession> {
    return await RemoteSession.open(this.#sessions.context, record, host, options);
  }

  async expiredAt(id: string, user: string): Promise<string | null> {
    // Look for one session at a time, because each look reads the whole audit log.
    const looked = this.#looking.then(async () => await lastExpiry(this.#hosts, id, user));
    this.#looking = looked.catch(() => null);
    return await looked;
  }

  /**
   * Looks for a user's unrecorded session on the other hosts. The host that finds the session records it.
   *
   * @returns false if no other host has the session
   */
  async record(id: string, user: string): Promise<boolean> {
    for (const host of await this.#hosts.othersOf(user)) {
      // If a host does not answer, fail with its error, because that host may have the session.
      if (await isThere(host, id, user)) return true;
    }
    return false;
  }
}

/**
 * When gc last deleted the session with this id, as the audit logs of the hosts that answer show it (ISO 8601).
 *
 * @param user only a session of this owner
 */
export async function lastExpiry(hosts: FleetHosts, id: string, user: string | undefined): Promise<string | null> {
  const { gatherEvents } = await import("../events/all-events.js");
  const deletions = await gatherEvents(hosts, { user, types: ["session.deleted"] });
  const isOwn = (owner: string | null) => user === undefined || owner === user;
  const last = deletions.findLast((event) => event.sessionId === id && isOwn(event.user));
  return last?.reason === "ttl" ? last.at : null;
}

async function isThere(
  host: Pick<RemoteHost, "sessionOf">,
  id: string,
  user: string,
  signal?: AbortSignal,
): Promise<boolean> {
  try {
    await host.sessionOf({ id, user }, signal === undefined ? {} : { signal });
    return true;
  } catch (error) {
    if (isFleetError(error, "FLEET_SESSION_NOT_FOUND")) return false;
    throw error;
  }
}
