import { setTimeout as delay } from "node:timers/promises";
import type { Config } from "../../config/schema.js";
import type { ServerRecord } from "../../model/server.js";
import { RawConnection } from "../../runtime/client/raw-connection.js";
import { deadline } from "../../runtime/deadline.js";
import { ownLimit } from "../../runtime/launch/own-limits.js";
import { provenEndpoint } from "../../runtime/process/probe.js";
import { isAlive } from "../../runtime/process/process-table.js";
import type { Findings, Probed } from "./findings.js";

/** After this many pings we open a new connection, because a server that accepts no connections is not healthy. */
const PINGS_PER_CONNECTION = 12;
/** If we notice a deadline this many milliseconds too late, this process did not run for a while. */
const LATE_MS = 500;
/** The longest wait after a failed probe, in milliseconds, because a server in trouble is probed more often. */
const RETRY_MS = 1_000;

/** Watches one launch of one server until it is closed. */
export class ServerMonitor {
  readonly server: ServerRecord;
  readonly #health: Config["health"];
  readonly #findings: Findings;
  readonly #prober: Prober;
  readonly #closed = new AbortController();
  readonly #ended: Promise<void>;
  #failures = 0;
  #answered = false;
  #probedOnce: (() => void) | undefined;
  /** Resolves after the first probe, whatever its result. */
  readonly first: Promise<void>;

  constructor(server: ServerRecord, health: Config["health"], findings: Findings) {
    this.server = server;
    this.#health = health;
    this.#findings = findings;
    this.#prober = new Prober(server, health, findings);
    this.first = new Promise((resolve) => {
      this.#probedOnce = resolve;
    });
    this.#ended = this.#run();
  }

  /** The local port of the monitor's own connection, to distinguish it from those of clients. */
  get localPort(): number | undefined {
    return this.#prober.localPort;
  }

  /** Whether the server answered the last probe. */
  get answers(): boolean {
    return this.#answered;
  }

  async #run(): Promise<void> {
    const { signal } = this.#closed;
    for (let first = true; !signal.aborted; first = false) {
      this.#judge(await this.#prober.probe(signal));
      this.#probedOnce?.();
      const { intervalMs } = this.#health;
      // Spread the probes over the interval, so that those of many servers do not come at the same time.
      const pause = first ? Math.random() * intervalMs : intervalMs;
      const waitMs = this.#failures > 0 ? Math.min(intervalMs, RETRY_MS) : pause;
      await delay(waitMs, undefined, { signal }).catch(() => undefined); // closed: the loop's condition ends it
    }
  }

  #judge(result: Probed): void {
    if (this.#closed.signal.aborted) return;
    this.#findings.probed(this.server, result);
    switch (result.kind) {
      case "ok":
        if (this.#failures > 0) this.#findings.well(this.server);
        this.#failures = 0;
        this.#answered = true;
        return;
      case "failed":
        this.#failures += 1;
        this.#answered = false;
        if (this.#failures < this.#health.failures) this.#findings.sick(this.server, this.#failures, result.reason);
        else if (result.hangs) this.#findings.hung(this.server, result.reason);
        // A server that answers pings may be in the middle of turns. So only report it, and let a person decide whether to
        // stop it.
        else if (this.#failures === this.#health.failures)
          this.#findings.sick(this.server, this.#failures, result.reason);
        return;
      case "gone":
        this.#findings.gone();
        return;
      case "unknown":
        return;
    }
  }

  async close(): Promise<void> {
    this.#closed.abort();
    await this.#prober.close();
    await this.#ended;
  }
}

/** Probes one launch of a server, again and again. */
class Prober {
  readonly #server: ServerRecord;
  readonly #health: Config["health"];
  readonly #findings: Findings;
  #connection: RawConnection | null = null;
  #pings = 0;

  constructor(server: ServerRecord, health: Config["health"], findings: Findings) {
    this.#server = server;
    this.#health = health;
    this.#findings = findings;
  }

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
      this.#findings.gone(); // the process has probably ended
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
