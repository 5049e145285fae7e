import type { Config } from "../../config/schema.js";
import type { ServerRecord } from "../../model/server.js";
import { RawConnection } from "../../runtime/client/raw-connection.js";
import { deadline } from "../../runtime/deadline.js";
import { ownLimit } from "../../runtime/launch/own-limits.js";
import { provenEndpoint } from "../../runtime/process/probe.js";
import { isAlive } from "../../runtime/process/process-table.js";

export type Probed =
  | { kind: "ok"; seconds: number }
  /** The server did not answer as it should. `hangs`: it did not answer the ping, so we cannot ask it about turns either. */
  | { kind: "failed"; reason: string; seconds: number; hangs: boolean }
  /** The server's process is gone. */
  | { kind: "gone" }
  /** We learned nothing about the server: this process was suspended during the probe, or has reached a limit. */
  | { kind: "unknown"; reason: string };

/** After this many pings we open a new connection, because a server that accepts no connections is not healthy. */
const PINGS_PER_CONNECTION = 12;
/** If we notice a deadline this many milliseconds too late, this process did not run for a while. */
const LATE_MS = 500;

/** Probes one launch of a server, again and again. */
export class Prober {
  readonly #server: ServerRecord;
  readonly #health: Config["health"];
  readonly #onClosed: () => void;
  #connection: RawConnection | null = null;
  #pings = 0;

  /** `onClosed` is called when the connection ends and we did not close it: the process has probably ended. */
  constructor(server: ServerRecord, health: Config["health"], onClosed: () => void) {
    this.#server = server;
    this.#health = health;
    this.#onClosed = onClosed;
  }

  /** The local port of the connection, if there is one. */
  get localPort(): number | undefined {
    return this.#connection?.localPort;
  }

  /** Probes once. Ignore the result if the signal has aborted. */
  async probe(signal: AbortSignal): Promise<Probed> {
    const begun = performance.now();
    const seconds = () => (performance.now() - begun) / 1000;
    using limit = deadline(this.#health.timeoutMs, signal);
    try {
      await this.#ask(limit.signal);
      return { kind: "ok", seconds: seconds() };
    } catch (error) {
      await this.close();
      try {
        return this.#explain(error, seconds());
      } catch (own) {
        // We could not look at the process, so it may still be there.
        return { kind: "unknown", reason: own instanceof Error ? own.message : String(own) };
      }
    }
  }

  /** @throws FleetError `FLEET_PROCESSES_UNREADABLE` when this process has reached a limit. */
  #explain(error: unknown, seconds: number): Probed {
    const { process } = this.#server;
    const own = ownLimit(error);
    if (own !== undefined) return { kind: "unknown", reason: `this process has reached a limit (${own})` };
    if (process === null || !isAlive(process)) return { kind: "gone" };
    if (seconds * 1000 > this.#health.timeoutMs + LATE_MS)
      return { kind: "unknown", reason: "this process was suspended for a while" };
    const reason = error instanceof Error ? error.message : String(error);
    return { kind: "failed", reason, seconds, hangs: !(error instanceof NoSessionError) };
  }

  async #ask(signal: AbortSignal): Promise<void> {
    const connection = await this.#connected(signal);
    await connection.request("ping", { message: "probe" }, signal);
    if (this.#health.session && this.#pings === 0) await tryASession(connection, this.#server, signal);
    this.#pings += 1;
  }

  async #connected(signal: AbortSignal): Promise<RawConnection> {
    if (this.#connection !== null && this.#pings < PINGS_PER_CONNECTION) return this.#connection;
    const connection = await RawConnection.open(provenEndpoint(this.#server), signal, { lasting: true });
    await this.close();
    this.#connection = connection;
    this.#pings = 0;
    void connection.closed.then(() => {
      if (this.#connection !== connection) return; // we closed it ourselves
      this.#connection = null;
      this.#onClosed();
    });
    return connection;
  }

  async close(): Promise<void> {
    const connection = this.#connection;
    this.#connection = null;
    await connection?.[Symbol.asyncDispose]();
  }
}

/** The server answers, but no session can be created on it. */
class NoSessionError extends Error {
  override readonly name = "NoSessionError";

  constructor(cause: unknown) {
    super(`no session can be made: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}

/**
 * Creates a session and deletes it again, without a turn. This proves that the server can write its home and set up a
 * session. The provider is never called, but without one the runtime refuses a session that has no GitHub token.
 *
 * @throws NoSessionError for any failure.
 */
async function tryASession(connection: RawConnection, server: ServerRecord, signal: AbortSignal): Promise<void> {
  const sessionId = `copilotfleet-probe-${server.launchId ?? server.id}`;
  const provider = { type: "openai", baseUrl: "http://127.0.0.1:9/v1", wireApi: "completions" };
  try {
    await connection.request("session.create", { sessionId, model: "probe", provider, envValueMode: "direct" }, signal);
    await connection.request("session.delete", { sessionId }, signal);
  } catch (error) {
    throw new NoSessionError(error);
  }
}
