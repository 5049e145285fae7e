import { setTimeout as delay } from "node:timers/promises";
import type { CopilotClient } from "@github/copilot-sdk";
import { abortable, deadline } from "../../base/clock.js";
import { ERRORS, FleetError, type FleetErrorCode, isFleetError, type Suggestion } from "../../base/errors.js";
import type { HostRecord } from "../../base/host.js";
import type { TokenRecord } from "../../base/token.js";
import { refuseSuspended } from "../../base/usage.js";
import { LONGEST_TIMER_MS } from "../../base/values/measures.js";
import { type PeerSettings, peerEndpoint } from "../../identity/tls/exposure.js";
import { issueHostToken, issueToken } from "../../identity/tokens.js";
import { connectClient } from "../../runtime/client/connect.js";
import { RawConnection } from "../../runtime/client/raw-connection.js";
import { RpcError } from "../../runtime/wire/rpc-client.js";
import type { ClientOptions } from "../../servers/clients.js";
import { type HostDirectory, hostAway } from "../../servers/directory.js";
import type { SessionsContext } from "../../sessions/problems.js";
import type { Store } from "../../store/store.js";

export interface LinkContext extends Pick<SessionsContext, "store" | "directory"> {
  config: { host: PeerSettings };
}

interface CallOptions {
  /** How long the other host may take, in milliseconds. */
  limitMs: number;
  signal?: AbortSignal | undefined;
}

/** How long another host may take to accept a connection from this one, in milliseconds. */
const CONNECT_MS = 5_000;
/** How often to check, during a call, that the other host still counts as alive, in milliseconds. */
const LOOK_MS = 1_000;
/** How long a call may take on the network, in addition to the limit for the other host, in milliseconds. */
const WAY_MS = 2_000;

/** A connection to the front door of another host, for calls to that host. Closing the connection cancels the calls. */
export class ControlLink implements AsyncDisposable {
  readonly #connection: RawConnection;
  readonly #context: LinkContext;
  readonly #host: string;

  private constructor(connection: RawConnection, context: LinkContext, host: string) {
    this.#connection = connection;
    this.#context = context;
    this.#host = host;
  }

  /** Connects to a host. @throws FleetError `FLEET_HOST_AWAY` when this fails; at once if the host counts as gone. */
  static async open(context: LinkContext, host: HostRecord, signal?: AbortSignal): Promise<ControlLink> {
    const { store, directory, config } = context;
    // Check the address first, so that no token is made for a host that cannot be reached.
    peerEndpoint(host, config.host, "");
    const issued = await issueHostToken(store, directory.own ?? "", host.name);
    using limit = deadline(CONNECT_MS, signal);
    try {
      const endpoint = peerEndpoint(host, config.host, issued.token);
      const connection = await RawConnection.open(endpoint, limit.signal, { lasting: true });
      return new ControlLink(connection, context, host.name);
    } catch (error) {
      // The other front door deletes a token only when it accepts the token. If this deletion fails, the token expires
      // after a minute.
      await store.tokens.delete(issued.id).catch(() => "the error below explains more");
      if (signal?.aborted === true) throw signal.reason;
      throw hostAway(host.name, error);
    }
  }

  /**
   * Calls one method on the host.
   *
   * @throws FleetError as the other host reports it; `FLEET_HOST_AWAY` when that host is gone or does not answer in
   * time.
   */
  async call(method: string, params: object, { limitMs: wantedMs, signal }: CallOptions): Promise<unknown> {
    const limitMs = Math.min(wantedMs, LONGEST_TIMER_MS);
    using limit = deadline(limitMs + WAY_MS, signal);
    using gone = whenGone(this.#context.directory, this.#host);
    // Close the connection when the host counts as gone, because a host that lost its network cannot close it.
    void gone.promise.then(() => this[Symbol.asyncDispose]());
    try {
      return await this.#connection.request("fleet.call", { method, params, limitMs }, limit.signal);
    } catch (error) {
      if (signal?.aborted === true) throw signal.reason;
      throw limit.signal.aborted ? hostAway(this.#host, limit.signal.reason) : fromThere(error, this.#host);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#connection[Symbol.asyncDispose]();
  }
}

/**
 * Returns a promise that resolves when the host counts as gone. Polls the store until the returned object is disposed.
 */
export function whenGone(directory: HostDirectory, name: string): { promise: Promise<void> } & Disposable {
  const over = new AbortController();
  return { promise: watch(directory, name, over.signal), [Symbol.dispose]: () => over.abort() };
}

/** Resolves when the host counts as gone. Never rejects, and never resolves once the signal has aborted. */
async function watch(directory: HostDirectory, name: string, signal: AbortSignal): Promise<void> {
  for (;;) {
    try {
      await delay(LOOK_MS, undefined, { signal, ref: false });
    } catch {
      return await new Promise(() => undefined); // the watch was disposed
    }
    // If the store does not answer, we know nothing about the host, so look again.
    const hosts = await directory.list().catch(() => null);
    if (hosts !== null && !hosts.some((host) => host.name === name && !host.gone)) return;
  }
}

function fromThere(error: unknown, host: string): unknown {
  if (error instanceof RpcError) return errorOfDoor(error) ?? hostAway(host, error);
  return isFleetError(error, "FLEET_SERVER_UNREACHABLE") ? hostAway(host, error) : error;
}

/** @returns the FleetError that an error response of a front door contains; null if it contains none */
export function errorOfDoor(error: unknown): FleetError | null {
  if (!(error instanceof Error) || !("data" in error)) return null;
  const { code, suggestions, retryAfterMs, limit } = (error.data ?? {}) as Record<string, unknown>;
  if (typeof code !== "string" || !Object.hasOwn(ERRORS, code)) return null;
  return new FleetError(code as FleetErrorCode, error.message, {
    suggestions: Array.isArray(suggestions) ? (suggestions.map(String) as Suggestion[]) : [],
    cause: error,
    ...(typeof limit === "string" ? { limit } : {}),
    ...(typeof retryAfterMs === "number" ? { retryAfterMs } : {}),
  });
}

const DOOR_CONNECT_MS = 10_000;
const GOODBYE_MS = 2_000;

/** An SDK client at the front door of another host, connected as the user. */
export interface DoorClient {
  client: CopilotClient;
  /** Resolves when the connection has ended. Never rejects. */
  closed: Promise<void>;
  /** Closes the connection and revokes its token. */
  end(): Promise<void>;
}

/**
 * Connects as the user to the front door of another host.
 */
export async function connectToDoor(
  { store, config }: Pick<LinkContext, "store" | "config">,
  host: HostRecord,
  user: string,
  options: Omit<ClientOptions, "gitHubToken">,
  signal: AbortSignal,
  visit: Visit = {},
): Promise<DoorClient> {
  // The other host refuses the user, too, but through the SDK's client, which does not pass the error on.
  refuseSuspended(await store.limits.read(user));
  // Check the address first, so that no token is made for a host that cannot be reached.
  peerEndpoint(host, config.host, "");
  const { id, token } = await issueVisitToken(store, user, host.name, visit);
  // Ignore a failure, because the token expires within a day and gc deletes it then.
  const forget = async () => await store.tokens.delete(id).catch(() => undefined);
  try {
    using limit = deadline(DOOR_CONNECT_MS, signal);
    const { client, closed, destroy } = await connectClient(
      peerEndpoint(host, config.host, token),
      options,
      limit.signal,
    );
    const end = async () => {
      using goodbye = deadline(GOODBYE_MS);
      // The host may be dead or hang, so wait only until the deadline.
      await abortable(Promise.race([client.stop(), closed]), goodbye.signal).catch(() => undefined);
      await client.forceStop();
      destroy();
      await forget();
    };
    return { client, closed, end };
  } catch (error) {
    await forget();
    if (signal.aborted) throw signal.reason;
    throw hostAway(host.name, error);
  }
}

/** This process's clients at the front doors of other hosts, one for each user. */
export class DoorClients {
  readonly #clients = new Map<string, Promise<DoorClient>>();

  async to(...connection: Parameters<typeof connectToDoor>): Promise<CopilotClient> {
    const [, , user] = connection;
    const known = this.#clients.get(user);
    if (known !== undefined) return (await known).client;
    const connecting = connectToDoor(...connection);
    this.#clients.set(user, connecting);
    const forget = () => {
      if (this.#clients.get(user) === connecting) this.#clients.delete(user);
    };
    connecting.then(async ({ closed }) => await closed.then(forget)).catch(forget);
    return (await connecting).client;
  }

  async close(user: string): Promise<void> {
    const known = this.#clients.get(user);
    this.#clients.delete(user);
    if (known !== undefined) await (await known).end();
  }

  async closeAll(): Promise<void> {
    await Promise.all([...this.#clients.keys()].map(async (user) => await this.close(user)));
  }
}

/** The longest connection of a process to another host's front door, in milliseconds. */
const VISIT_MS = 24 * 3_600_000;

interface Visit {
  /**
   * The lease that covers the user's turns in a session. This process has the lease, or runs under a
   * `copilotfleet lock` that has the lease.
   */
  lease?: TokenRecord["lease"];
  /** The id of the credential that the user showed to the process. */
  tokenId?: string | null | undefined;
}

/**
 * Makes a token with which a process of this host can connect to the front door of host `to` as the user, once within a
 * minute. The connection may last until the token expires after a day. The token expires because the token of a killed
 * process would otherwise stay valid forever.
 */
export async function issueVisitToken(store: Store, user: string, to: string, { lease, tokenId = null }: Visit) {
  const covered = lease === undefined ? {} : { lease };
  return await issueToken(store, user, VISIT_MS, { door: to, passing: true, shown: tokenId, ...covered });
}
