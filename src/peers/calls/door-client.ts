import type { CopilotClient } from "@github/copilot-sdk";
import { hostAway } from "../../hosts/problems.js";
import { peerEndpoint } from "../../identity/tls/peer.js";
import { issueVisitToken, type Visit } from "../../identity/visit-token.js";
import type { HostRecord } from "../../model/host.js";
import { refuseSuspended } from "../../model/usage/user-limits.js";
import type { ClientOptions } from "../../pool/clients.js";
import { connectClient } from "../../runtime/client/connect.js";
import { abortable, deadline } from "../../runtime/clock.js";
import type { LinkContext } from "./control-link.js";

const CONNECT_MS = 10_000;
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
    using limit = deadline(CONNECT_MS, signal);
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
