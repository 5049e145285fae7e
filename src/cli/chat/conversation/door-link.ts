import type { CopilotSession, ResumeSessionConfig, SessionConfig } from "@github/copilot-sdk";
import { FleetError, isFleetError } from "../../../errors.js";
import { errorOfDoor } from "../../../peers/calls/control-link.js";
import { type ConnectedClient, connectClient } from "../../../runtime/client/connect.js";
import { abortable, deadline, isTimeout, pause } from "../../../runtime/clock.js";
import type { Door } from "../../flags/door.js";

const [CONNECT_MS, OPEN_MS, GOODBYE_MS] = [10_000, 30_000, 2_000];
/** How long to try to connect again, and the pause between two tries, in milliseconds. */
const RECONNECT_MS = 20_000;
const RETRY_MS = 500;

export interface Attached {
  session: CopilotSession;
  /** Resolves when the connection has ended. Never rejects. */
  closed: Promise<void>;
}

/** A connection to a front door. If it has ended, the next request connects again. */
export class DoorLink {
  readonly #door: Door;
  #connection: ConnectedClient | null = null;
  /** Sessions that may open after the chat gave up on them. A promise settles once its session is deleted or left. */
  readonly #unwanted = new Set<Promise<unknown>>();

  constructor(door: Door) {
    this.#door = door;
  }

  get name(): string {
    return this.#door.name;
  }

  /** @throws FleetError `FLEET_TOKEN_REFUSED`, `FLEET_SERVER_UNREACHABLE`. */
  async connected(signal: AbortSignal): Promise<ConnectedClient> {
    if (this.#connection !== null) return this.#connection;
    const { address, token, tls } = this.#door;
    const endpoint = { address: address.host, port: address.port, token, tls };
    using limit = deadline(CONNECT_MS, signal);
    try {
      const connection = await connectClient(endpoint, {}, limit.signal);
      this.#connection = connection;
      void connection.closed.then(() => {
        if (this.#connection === connection) this.#connection = null;
      });
      return connection;
    } catch (error) {
      signal.throwIfAborted();
      throw this.#explained(error);
    }
  }

  /** Like {@link connected}, but retries for `RECONNECT_MS`, because the front door may only be restarting. */
  async reconnected(signal: AbortSignal): Promise<ConnectedClient> {
    const until = performance.now() + RECONNECT_MS;
    for (;;) {
      try {
        return await this.connected(signal);
      } catch (error) {
        if (!isFleetError(error, "FLEET_SERVER_UNREACHABLE") || performance.now() > until) throw error;
      }
      await pause(RETRY_MS, signal);
    }
  }

  async create(settings: SessionConfig, signal: AbortSignal): Promise<Attached> {
    const { client, closed } = await this.connected(signal);
    const drop = async ({ sessionId }: CopilotSession) => await client.deleteSession(sessionId);
    return { session: await this.#open(client.createSession(settings), drop, { closed, signal }), closed };
  }

  async resume(id: string, settings: ResumeSessionConfig, signal: AbortSignal): Promise<Attached> {
    const { client, closed } = await this.reconnected(signal);
    const drop = async (session: CopilotSession) => await session.disconnect();
    return { session: await this.#open(client.resumeSession(id, settings), drop, { closed, signal }), closed };
  }

  /** @param drop deletes or leaves the session if the front door opens it after the time limit or the abort */
  async #open(
    request: Promise<CopilotSession>,
    drop: (session: CopilotSession) => Promise<void>,
    { closed, signal }: { closed: Promise<void>; signal: AbortSignal },
  ): Promise<CopilotSession> {
    using limit = deadline(OPEN_MS, signal);
    try {
      return await answered(request, closed, limit.signal);
    } catch (error) {
      if (limit.signal.aborted) this.#drop(request.then(drop));
      if (!isTimeout(error)) throw error;
      const message = `The front door at ${this.name} did not open the session in time.`;
      throw new FleetError("FLEET_SERVER_UNREACHABLE", message, { cause: error });
    }
  }

  #drop(dropped: Promise<void>): void {
    const ended = dropped.catch(() => undefined).finally(() => this.#unwanted.delete(ended));
    this.#unwanted.add(ended);
  }

  async close(): Promise<void> {
    const connection = this.#connection;
    this.#connection = null;
    if (connection === null) return;
    using limit = deadline(GOODBYE_MS);
    const goodbye = Promise.all(this.#unwanted).then(() => connection.client.stop());
    await abortable(Promise.race([goodbye, connection.closed]), limit.signal).catch(() => undefined);
    await connection.client.forceStop();
    connection.destroy();
  }

  #explained(error: unknown): unknown {
    if (!isFleetError(error, "FLEET_SERVER_UNREACHABLE")) return error;
    const { cause } = error;
    const reason = cause instanceof Error ? cause.message : "it does not answer";
    if (reason.includes("AUTHENTICATION_FAILED")) {
      return new FleetError("FLEET_TOKEN_REFUSED", `The front door at ${this.name} refused the token.`, {
        cause,
        suggestions: ["Ask the operator of the fleet for a token. The reason is in the log of serve there."],
      });
    }
    return new FleetError("FLEET_SERVER_UNREACHABLE", `The front door at ${this.name} cannot be used: ${reason}.`, {
      cause,
      suggestions: ["Check that copilotfleet serve runs there, and that its serve.listen has this address."],
    });
  }
}

/**
 * Waits for the front door's answer.
 *
 * @throws the error in the answer; `FLEET_SERVER_LOST` if the front door disconnects; the signal's reason if it aborts
 */
export async function answered<T>(request: Promise<T>, closed: Promise<void>, signal: AbortSignal): Promise<T> {
  const lost = closed.then((): never => {
    throw new FleetError("FLEET_SERVER_LOST", "The front door closed the connection before it answered.");
  });
  try {
    return await abortable(Promise.race([request, lost]), signal);
  } catch (error) {
    throw errorOfDoor(error) ?? error;
  }
}
