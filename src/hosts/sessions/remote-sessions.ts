import type { CopilotSession } from "@github/copilot-sdk";
import { abortable, either, isTimeout } from "../../base/clock.js";
import { isFleetError } from "../../base/errors.js";
import type { HostRecord } from "../../base/host.js";
import { newSessionId, serverIdOf } from "../../base/ids.js";
import { newSessionRecord, type SessionRecord } from "../../base/session.js";
import type { TurnReply } from "../../runtime/client/turn.js";
import { hostAway, sessionMoved } from "../../servers/directory.js";
import type { HeldLease } from "../../sessions/leases.js";
import type { CreateOptions, SessionsElsewhere } from "../../sessions/open-sessions.js";
import { explained, type SessionsContext, sessionExists } from "../../sessions/problems.js";
import type { Asker } from "../../sessions/requests.js";
import type { TurnLease } from "../../sessions/seen.js";
import type { Sessions } from "../../sessions/sessions.js";
import type { OpenOptions } from "../../sessions/use/local-session.js";
import {
  type AttachedSession,
  askerOf,
  OpenSession,
  ownUse,
  type Prompt,
  type PromptHistory,
  permissions,
  type SendOptions,
} from "../../sessions/use/open-session.js";
import { recordFor, type SessionView, viewRecord } from "../../sessions/view.js";
import { connectToDoor, type DoorClient, errorOfDoor, whenGone } from "../calls/control-link.js";
import type { FleetHosts } from "../fleet-hosts.js";
import { RemoteHost } from "../remote-host.js";

/**
 * Creates and opens sessions on other hosts, through the front doors of these hosts. `OpenSessions` and `SessionFinder`
 * call it by the interfaces that they define.
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
  const { gatherEvents } = await import("../all-events.js");
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

/** A session that is open at the front door of the host that has it. */
interface RemoteAttached extends AttachedSession {
  door: DoorClient;
  host: HostRecord;
  /** The fence of the lease that covers the turns of this connection. */
  fence: number | undefined;
}

interface RemoteOpenOptions extends OpenOptions {
  lease?: TurnLease | undefined;
  /** The id of the credential that the user showed. */
  tokenId?: string | undefined;
  signal: AbortSignal;
}

const REOPEN_MS = 30_000;

/** A session that this process uses through the front door of another host. */
class RemoteSession extends OpenSession<RemoteAttached> {
  readonly #options: OpenOptions;
  /**
   * The lease on this session under which this process was started (`copilotfleet lock SESSION -- COMMAND`), or null.
   */
  readonly #outer: HeldLease | null;
  readonly #asker: Asker | null;

  private constructor(
    context: SessionsContext,
    record: SessionRecord,
    options: OpenOptions,
    attached: RemoteAttached,
    outer: HeldLease | null,
    asker: Asker | null,
  ) {
    super(context, record, attached, asker);
    this.#asker = asker;
    this.#options = options;
    this.#outer = outer;
  }

  static async open(
    context: SessionsContext,
    record: SessionRecord,
    host: HostRecord,
    options: RemoteOpenOptions,
  ): Promise<RemoteSession> {
    const { env, leases } = context;
    const given = options.lease ?? leases.ambient.find(record.id, options.user) ?? undefined;
    const outer = given === undefined ? await leases.outer(record.id, options.user, env) : null;
    const lease = given ?? outer ?? undefined;
    try {
      await lease?.check();
      const asker = askerOf(context, record.id, options);
      const attached = await attach(context, record, host, { ...options, lease, asker });
      return new RemoteSession(context, record, options, attached, outer, asker);
    } catch (error) {
      await outer?.detach();
      throw error;
    }
  }

  /** Sends a prompt. @throws FleetError `FLEET_HOST_AWAY` as soon as the session's host is gone. */
  async send(message: Prompt, options: SendOptions = {}): Promise<TurnReply> {
    const prompt = typeof message === "string" ? { prompt: message } : message;
    const { directory, leases } = this.context;
    const lease = options.lease ?? leases.ambient.find(this.record.id, this.#options.user) ?? this.#outer ?? undefined;
    await lease?.check();
    if (this.isLost || lease?.fence !== this.attached.fence) await this.#reopen(lease);
    const { closed, host } = this.attached;
    // If the lease is lost, abort the turn here. The other host aborts it, too, when it notices the loss.
    using stop = either(options.signal, lease?.signal);
    using gone = whenGone(directory, host.name);
    let isGone = false;
    void gone.promise.then(() => (isGone = true));
    try {
      return await this.run(Promise.race([closed, gone.promise]), prompt, { ...options, signal: stop.signal });
    } catch (error) {
      if (isGone) throw hostAway(host.name, error);
      if (!isFleetError(error, "FLEET_TURN_FAILED")) throw error;
      // The other host may have ended the turn because it noticed the loss of the lease before this process did.
      await lease?.check();
      throw errorOfDoor(error.cause) ?? error;
    }
  }

  /** Opens the session again, because the connection has ended or the turn has another lease than the connection. */
  async #reopen(lease: TurnLease | undefined): Promise<void> {
    const { directory } = this.context;
    await this.attached.door.end();
    const record = await recordFor(this.context, this.record.id, this.#options.user);
    const where = await directory.whereIs(record);
    // If the session is on this host now, the caller must resume it here.
    if (where.here) throw sessionMoved(record, { name: directory.own ?? "" });
    const signal = AbortSignal.timeout(REOPEN_MS);
    const options = { ...this.#options, lease, signal, asker: this.#asker };
    this.replace(await attach(this.context, record, where.host, options));
  }

  async history(fromBytes?: number): Promise<PromptHistory> {
    return await this.#host.prompts({ id: this.record.id, user: this.#options.user, fromBytes });
  }

  protected async view(): Promise<SessionView> {
    return await this.#host.sessionOf({ id: this.record.id, user: this.#options.user });
  }

  protected viewUnseen(): SessionView {
    const { ttlMs } = this.context.config.session;
    return viewRecord(this.record, { ttlMs, lease: null, stranded: false });
  }

  protected async delete(): Promise<void> {
    await this.#host.deleteSessions({ ids: [this.record.id] });
  }

  protected override async disconnect(): Promise<void> {
    await super.disconnect();
    try {
      await this.attached.door.end();
    } finally {
      await this.#outer?.detach();
    }
  }

  get #host(): RemoteHost {
    return new RemoteHost(this.attached.host, this.context);
  }
}

async function attach(
  context: SessionsContext,
  { id, owner }: SessionRecord,
  host: HostRecord,
  { user, session, lease, tokenId, signal, asker }: RemoteOpenOptions & { asker: Asker | null },
): Promise<RemoteAttached> {
  const { config } = context;
  const under = lease === undefined ? {} : { lease: { sessionId: id, fence: lease.fence } };
  const door = await connectToDoor(context, host, user, {}, signal, { ...under, tokenId });
  try {
    // The other host adds the remaining settings, such as the provider and its key. It also decides which requests for
    // approval reach this handler.
    const given = { ...asker?.handlersFor(config), ...session };
    // Ask the user only for permissions that the other host would accept.
    const own = asker === null || (config.isolation === "per-user" && user === owner);
    const decide = permissions(config, own, given);
    const settings = { streaming: true, ...given, onPermissionRequest: asker?.guard(decide) ?? decide };
    const lost = door.closed.then((): never => {
      throw hostAway(host.name);
    });
    lost.catch(() => undefined);
    const opened: CopilotSession = await abortable(
      Promise.race([door.client.resumeSession(id, settings), lost]),
      signal,
    );
    return { session: opened, closed: door.closed, door, host, fence: lease?.fence };
  } catch (error) {
    await door.end();
    if (signal.aborted && error === signal.reason && isTimeout(error)) throw hostAway(host.name, error);
    throw errorOfDoor(error) ?? reasonOf(error);
  }
}

function reasonOf(error: unknown): unknown {
  try {
    return explained(error);
  } catch (reason) {
    return reason;
  }
}
