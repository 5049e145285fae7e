import type { Config } from "../../config/schema.js";
import { isFleetError } from "../../errors.js";
import { hostAway, sessionMoved } from "../../hosts/problems.js";
import type { HostRecord } from "../../model/host.js";
import { serverIdOf } from "../../model/ids.js";
import { newSessionRecord, type SessionRecord } from "../../model/session.js";
import { abortable, isTimeout } from "../../runtime/deadline.js";
import type { Leases } from "../../sessions/leases/leases.js";
import type { TurnLease } from "../../sessions/leases/seen.js";
import type { CreateOptions, OpenOptions } from "../../sessions/options.js";
import { explained, isStoreTrouble, sessionExists, unseen } from "../../sessions/problems.js";
import { permissions } from "../../sessions/session-config.js";
import { type Exchange, ownUse, type Sessions } from "../../sessions/sessions.js";
import type { SendOptions } from "../../sessions/use/open-session.js";
import { type SessionView, viewRecord } from "../../sessions/view.js";
import { errorOfDoor, type LinkContext } from "../calls/control-link.js";
import { connectToDoor } from "../calls/door-client.js";
import { RemoteHost } from "../remote-host.js";
import { type RemoteAttachment, RemoteSession } from "./remote-session.js";

export interface RemoteSessionsContext extends LinkContext {
  config: Config;
  env: NodeJS.ProcessEnv;
  sessions: Sessions;
  leases: Leases;
}

const REATTACH_MS = 30_000;

/** Sessions on other hosts, used through the front doors of these hosts. The counterpart of `Sessions`. */
export class RemoteSessions {
  readonly #context: RemoteSessionsContext;

  constructor(context: RemoteSessionsContext) {
    this.#context = context;
  }

  /**
   * Creates a session for a user who is placed on another host. This host writes the record first. The other host's
   * front door then creates the session when it is opened, because the session never had a turn.
   *
   * @throws FleetError `FLEET_SESSION_EXISTS` when any user has a session with this id; `FLEET_HOST_AWAY`; and the
   * errors of that host.
   */
  async create(host: HostRecord, options: CreateOptions & { id: string }, isRandom: boolean): Promise<RemoteSession> {
    const { store, config, directory, sessions } = this.#context;
    const { id, user, signal } = options;
    const there = new RemoteHost(host, this.#context);
    if ((await store.sessions.read(id)) !== null) throw sessionExists(id);
    // The runtime silently continues a session if it finds the id on its disk.
    if (!isRandom && (await isThere(there, id, user, signal))) throw sessionExists(id);
    const serverId =
      config.isolation === "shared" ? (await there.serverFor({ user, request: {} }, { signal })).id : serverIdOf(user);
    const ephemeralUse = options.ephemeral === true ? ownUse(directory) : undefined;
    const place = { serverId, host: host.name, ...(directory.isShared ? { term: host.term } : {}) };
    const record = newSessionRecord({ ...options, owner: user, ephemeralUse }, place);
    await sessions.record(record);
    try {
      return await this.#open(record, host, options);
    } catch (error) {
      // Nobody has used the session, so free its id after the failure.
      await store.sessions.delete(id);
      throw error;
    }
  }

  /** @throws FleetError as `Sessions.resume`; `FLEET_SESSION_MOVED`, `FLEET_HOST_AWAY`. */
  async resume(record: SessionRecord, host: HostRecord, options: OpenOptions): Promise<RemoteSession> {
    const open = await this.#open(record, host, options);
    if (record.persistence === "ephemeral") {
      await this.#context.store.sessions.update(record.id, (draft) => {
        draft.usedBy = ownUse(this.#context.directory);
      });
    }
    return open;
  }

  /** Sends one prompt and returns the reply, in a session that is opened only for this. */
  async exchange(
    record: SessionRecord,
    host: HostRecord,
    prompt: string,
    options: OpenOptions & SendOptions,
  ): Promise<Exchange> {
    const open = await this.resume(record, host, options);
    try {
      const { signal, timeoutMs, onDelta, lease } = options;
      const reply = await open.send(prompt, {
        signal,
        ...(timeoutMs === undefined ? {} : { timeoutMs }),
        ...(onDelta === undefined ? {} : { onDelta }),
        ...(lease === undefined ? {} : { lease }),
      });
      return { reply, session: await this.#leaveAnswered(open, options.user) };
    } catch (error) {
      await open.close();
      throw error;
    }
  }

  /** Leaves the session after an answered turn. A failing store or host must not keep the reply from the caller. */
  async #leaveAnswered(open: RemoteSession, user: string): Promise<SessionView> {
    try {
      return await this.leave(open, user);
    } catch (error) {
      if (!isStoreTrouble(error) && !isFleetError(error, "FLEET_HOST_AWAY")) throw error;
      const { config, sessions } = this.#context;
      sessions.warn(unseen(open.record.id, error.message));
      return viewRecord(open.record, { ttlMs: config.session.ttlMs, lease: null, stranded: false });
    }
  }

  /**
   * Leaves an open session. Deletes an ephemeral one, unless it is parked.
   *
   * @returns the session's state after that
   */
  async leave(open: RemoteSession, user: string, options: { park?: boolean } = {}): Promise<SessionView> {
    const { id, persistence } = open.record;
    const there = new RemoteHost(open.host, this.#context);
    if (persistence === "persistent" || options.park === true) {
      await open.close();
      if (persistence === "ephemeral") {
        await this.#context.store.sessions.update(id, (draft) => {
          draft.usedBy = null;
        });
      }
      return await there.sessionOf({ id, user });
    }
    let before: SessionView;
    try {
      before = await there.sessionOf({ id, user });
    } finally {
      await this.end(open);
    }
    return { ...before, state: "gone", sizeBytes: 0 };
  }

  /** Ends this process's use of the session. */
  async end(open: RemoteSession): Promise<void> {
    await open.close();
    const { id, persistence } = open.record;
    if (persistence === "ephemeral") await new RemoteHost(open.host, this.#context).deleteSessions({ ids: [id] });
  }

  async #open(record: SessionRecord, host: HostRecord, options: OpenOptions): Promise<RemoteSession> {
    const { env, leases } = this.#context;
    const given = options.lease ?? leases.ambient.find(record.id, options.user) ?? undefined;
    const outer = given === undefined ? await leases.outer(record.id, options.user, env) : null;
    const lease = given ?? outer ?? undefined;
    try {
      await lease?.check();
      const attached = await this.#attach(record, host, { ...options, lease }, options.signal);
      const again = async (under: TurnLease | undefined) => await this.#again(record, { ...options, lease: under });
      return new RemoteSession(record, this.#context, attached, again, {
        ambient: leases.ambient,
        user: options.user,
        outer,
      });
    } catch (error) {
      await outer?.detach();
      throw error;
    }
  }

  async #again({ id }: SessionRecord, options: OpenOptions): Promise<RemoteAttachment> {
    const { sessions, directory } = this.#context;
    const record = await sessions.recordFor(id, options.user);
    const where = await directory.whereIs(record);
    // The session is on this host now, so the caller must resume it here.
    if (where.here) throw sessionMoved(record, { name: directory.own ?? "" });
    return await this.#attach(record, where.host, options, AbortSignal.timeout(REATTACH_MS));
  }

  async #attach(
    { id }: SessionRecord,
    host: HostRecord,
    { user, session, lease }: OpenOptions,
    signal: AbortSignal,
  ): Promise<RemoteAttachment> {
    const { config } = this.#context;
    const under = lease === undefined ? undefined : { sessionId: id, fence: lease.fence };
    const door = await connectToDoor(this.#context, host, user, {}, signal, under);
    try {
      // That host adds the other settings: provider, key, model and tools. It also decides whether approvals count.
      const settings = { streaming: true, ...session, onPermissionRequest: permissions(config, true, session) };
      const lost = door.closed.then((): never => {
        throw hostAway(host.name);
      });
      lost.catch(() => undefined);
      const opened = await abortable(Promise.race([door.client.resumeSession(id, settings), lost]), signal);
      return { session: opened, door, host, fence: lease?.fence };
    } catch (error) {
      await door.end();
      if (signal.aborted && error === signal.reason && isTimeout(error)) throw hostAway(host.name, error);
      throw errorOfDoor(error) ?? reasonOf(error);
    }
  }
}

async function isThere(there: RemoteHost, id: string, user: string, signal: AbortSignal): Promise<boolean> {
  try {
    await there.sessionOf({ id, user }, { signal });
    return true;
  } catch (error) {
    if (isFleetError(error, "FLEET_SESSION_NOT_FOUND")) return false;
    throw error;
  }
}

/** The runtime's error, translated into one of the fleet's. */
function reasonOf(error: unknown): unknown {
  try {
    return explained(error);
  } catch (reason) {
    return reason;
  }
}
