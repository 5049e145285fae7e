import type { CopilotClient } from "@github/copilot-sdk";
import { FleetError, quote, type Suggestion } from "../../base/errors.js";
import type { HostRecord } from "../../base/host.js";
import type { Lease } from "../../base/session.js";
import { refuseSuspended } from "../../base/usage.js";
import { unknownOf } from "../../hosts/gather.js";
import type { ConnectInfo, StopRequest } from "../../hosts/options.js";
import { RemoteHost } from "../../hosts/remote-host.js";
import { audited } from "../../identity/acting.js";
import * as arg from "../../operations/fields.js";
import { provenEndpoint } from "../../runtime/process/probe.js";
import type { ClientOptions } from "../../servers/clients.js";
import type { Stopped } from "../../servers/stop.js";
import { type AcquireOptions, acquireOptions, type HeldLease, type LockOptions } from "../../sessions/leases.js";
import { sessionsNotFound } from "../../sessions/problems.js";
import { Group } from "./group.js";

const START_WAIT_MS = 30_000;

/** SDK clients that are connected to users' own servers. */
export class ClientGroup extends Group {
  /**
   * Returns an SDK client that is connected to the user's own server, and starts the server if necessary. Further calls
   * return the same client for as long as it is connected. Only the server's process gets `gitHubToken`; the fleet does
   * not record it. If the user is placed on another host, connects through the front door of that host.
   *
   * @throws FleetError `FLEET_USAGE_INVALID` when `gitHubToken` would have to be sent to another host.
   */
  async connect(user: string, options: ClientOptions & { signal?: AbortSignal } = {}): Promise<CopilotClient> {
    const { gitHubToken, signal = AbortSignal.timeout(START_WAIT_MS), ...client } = options;
    const { directory, store, config, pool, clients, doorClients } = this.parts;
    const where = await directory.place(user);
    if (!where.here) {
      if (gitHubToken !== undefined) throw tokenStaysHere(user, where.host);
      return await doorClients.to({ store, config }, where.host, user, client, signal);
    }
    const token = gitHubToken === undefined ? {} : { token: { from: "caller" } as const, tokenValue: gitHubToken };
    const { server } = await pool.serverOf(user, { ...token, signal });
    clients.pin(server.id);
    return (await clients.to(server, client, signal)).client;
  }

  /** Undoes {@link connect}: waits for all turns, stops the user's server and closes the client. */
  async release(user: string, { signal, ...request }: StopRequest = {}): Promise<{ stopped: [Stopped] }> {
    const { host, server } = await this.parts.hosts.findOf(user);
    const [stopped = { id: server.id, outcome: "already-stopped", cut: [] }] = await host.stop(
      { ids: [server.id], request },
      { signal },
    );
    await this.parts.doorClients.close(user);
    return { stopped: [stopped] };
  }

  /**
   * Returns the address and the token with which an SDK client in any language can use the user's running server
   * directly, on the same host. First proves that the process behind the port is that server.
   *
   * @throws FleetError `FLEET_NAME_NOT_FOUND` or `FLEET_SERVER_LOST` when the server does not run;
   * `FLEET_SERVER_UNREACHABLE` when it runs on another host; `FLEET_USER_SUSPENDED`.
   */
  async connectInfo(user: string): Promise<ConnectInfo> {
    refuseSuspended(await this.parts.store.limits.read(user));
    const { host, server } = await this.parts.hosts.findOf(user);
    if (host instanceof RemoteHost) throw onAnotherHost(user, host.record);
    const { address, port, token } = provenEndpoint(server);
    return { url: `${address}:${port}`, token, user: server.user ?? user, serverId: server.id };
  }

  static {
    Group.guard(ClientGroup.prototype, {
      connect: ["user", "options"],
      release: ["user", "options"],
      connectInfo: ["user"],
    });
  }
}

/** Refuses a direct connection, because a server listens only on its own host and its token stays there. */
function onAnotherHost(user: string, { name, door }: HostRecord): FleetError {
  const elsewhere: Suggestion[] =
    door === null ? [] : [`Connect to the front door of host ${name}, at ${door}, with a token.`];
  const message = `The server of ${quote(user)} is on host ${quote(name)}. A direct connection works only on that host.`;
  return new FleetError("FLEET_SERVER_UNREACHABLE", message, {
    suggestions: [...elsewhere, `copilotfleet token issue --user ${user} --ttl 30d`],
  });
}

function tokenStaysHere(user: string, { name }: HostRecord): FleetError {
  const message = `gitHubToken cannot be given for ${quote(user)}, who is on host ${quote(name)}, because tokens are never sent to another host.`;
  return new FleetError("FLEET_USAGE_INVALID", message, {
    suggestions: [`Set "auth" in the configuration of host ${name}.`],
  });
}

/** The leases on sessions. A lease is a time-bounded right to use one session. */
export class LeaseGroup extends Group {
  /**
   * Runs `work` under the lease on a session. Renews the lease while `work` runs, and releases it at the end. If `work`
   * starts turns for the same user in that session (`sessions.use`, `sessions.send`), these turns use this lease,
   * unless their options name another lease. Before any other step that must not run without the lease, call
   * `await lease.check()`.
   *
   * @throws the error of `work`; FleetError `FLEET_SESSION_LOCKED` when the lease is not available in time,
   * `FLEET_SESSION_NOT_FOUND` when the user is neither owner nor member; `FLEET_LEASE_LOST` when the lease was lost
   * while `work` ran, even if `work` succeeded.
   */
  async hold<T>(sessionId: string, options: LockOptions, work: (lease: HeldLease) => Promise<T>): Promise<T> {
    const { leases } = this.parts;
    if (options.steal === undefined) return await leases.hold(this.#acquireOptions(sessionId, options), work);
    return await leases.under(await this.acquire(sessionId, options), work);
  }

  /**
   * Acquires the lease on a session. The lease is renewed until it is released or detached. @throws like {@link hold}.
   */
  async acquire(sessionId: string, options: LockOptions): Promise<HeldLease> {
    const { store, events, finder, leases } = this.parts;
    const wanted = this.#acquireOptions(sessionId, options);
    const { user, steal } = options;
    if (steal === undefined) return await leases.acquire(wanted);
    const { owner } = await finder.find(sessionId, user);
    const held = await store.leases.read(sessionId);
    const detail = `${held === null ? "" : `from ${held.holder}: `}${steal.reason}`;
    const stolen = { type: "session.stolen", actor: { user }, user: owner, sessionId, detail } as const;
    return await audited(events, stolen, async () => await leases.acquire(wanted));
  }

  /**
   * Releases the lease that has this token.
   *
   * @throws FleetError `FLEET_LEASE_LOST` when the token is wrong or its lease has ended.
   */
  async release(sessionId: string, options: { token: string }): Promise<void> {
    await this.parts.store.leases.release(sessionId, options.token);
  }

  /**
   * Returns the current lease on a session; null if there is none.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND` when the session does not exist, or `user` may not use it.
   */
  async get(sessionId: string, options: { user?: string | undefined } = {}): Promise<Lease | null> {
    const { user } = options;
    if (user !== undefined) await this.parts.finder.find(sessionId, user);
    const lease = await this.parts.store.leases.read(sessionId);
    if (lease === null && user === undefined && (await unknownOf(this.parts, [sessionId])).length > 0)
      throw sessionsNotFound([sessionId]);
    return lease;
  }

  #acquireOptions(sessionId: string, options: LockOptions): AcquireOptions {
    const acquire = acquireOptions(sessionId, options, this.parts.config);
    const { store, finder } = this.parts;
    const mayUse = async () => {
      refuseSuspended(await store.limits.read(acquire.holder));
      return await finder.find(acquire.sessionId, acquire.holder);
    };
    return { ...acquire, mayUse };
  }

  static {
    // The lease has its own bounds for `wait`, and reads it as it is.
    const lock = arg.needs(["user"], { wait: arg.span });
    Group.guard(LeaseGroup.prototype, {
      hold: ["sessionId", lock, "work"],
      acquire: ["sessionId", lock],
      release: ["sessionId", arg.needs(["token"], { token: arg.text })],
      get: ["sessionId", "options"],
    });
  }
}
