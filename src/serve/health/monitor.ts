import { setTimeout as delay } from "node:timers/promises";
import { type Clock, deadline } from "../../base/clock.js";
import type { ServerRecord } from "../../base/server.js";
import type { Config } from "../../config/schema.js";
import { RawConnection } from "../../runtime/client/raw-connection.js";
import { ownLimit } from "../../runtime/launch/launch.js";
import { provenEndpoint } from "../../runtime/process/probe.js";
import { isAlive } from "../../runtime/process/process-table.js";
import { endHung, MOST_RESTARTS, recordHealth } from "../../servers/health.js";
import type { Operations, ServeContext } from "../context.js";
import type { LoopTimer } from "../failures.js";
import type { RestartReason } from "../report/metrics.js";

/** After this many pings, we open a new connection, to check that the server still accepts connections. */
const PINGS_PER_CONNECTION = 12;
/** If a probe ends more than this many milliseconds after its deadline, this process was suspended for a while. */
const LATE_MS = 500;
/** The longest wait after a failed probe, in milliseconds. It is short, because we probe a server in trouble more often. */
const RETRY_MS = 1_000;
/** After a server has closed our connection, we check its process again after each of these times, in milliseconds. */
const STILL_ENDING_MS = [20, 60, 200];

type Probed =
  | { kind: "ok"; seconds: number }
  /** The server gave no answer or a wrong answer. */
  | { kind: "failed"; reason: string; seconds: number }
  | { kind: "gone" }
  /** We learned nothing about the server: this process was suspended during the probe, or has reached a limit. */
  | { kind: "unknown"; reason: string };

/** Watches one launch of one server until {@link close}: records whether the server answers, and ends it if it hangs. */
export class ServerMonitor {
  readonly server: ServerRecord;
  readonly #context: ServeContext;
  readonly #operations: Operations;
  readonly #restarts: Restarts;
  readonly #timer: LoopTimer;
  readonly #prober: Prober;
  readonly #closed = new AbortController();
  /** Resolves after the first probe, whatever its result. */
  readonly first: Promise<void>;
  readonly #ended: Promise<void>;
  /** How many probes in a row failed. */
  #failures = 0;
  #answered = false;

  constructor(
    server: ServerRecord,
    context: ServeContext,
    operations: Operations,
    restarts: Restarts,
    timer: LoopTimer,
  ) {
    this.server = server;
    this.#context = context;
    this.#operations = operations;
    this.#restarts = restarts;
    this.#timer = timer;
    this.#prober = new Prober(server, context.config.health, timer);
    this.first = this.#probe();
    this.#ended = this.#run();
  }

  /** The local port of the monitor's own connection. Other connections to the server belong to clients. */
  get localPort(): number | undefined {
    return this.#prober.localPort;
  }

  /** Whether the server answered the last probe. */
  get answers(): boolean {
    return this.#answered;
  }

  async #run(): Promise<void> {
    const { signal } = this.#closed;
    const { intervalMs } = this.#context.config.health;
    await this.first;
    // Spread the probes over the interval, so that the probes of many servers do not come at the same time.
    for (let pauseMs = Math.random() * intervalMs; !signal.aborted; pauseMs = intervalMs) {
      const waitMs = this.#failures > 0 ? Math.min(intervalMs, RETRY_MS) : pauseMs;
      await delay(waitMs, undefined, { signal }).catch(() => undefined); // after close(), the condition ends the loop
      if (!signal.aborted) await this.#probe();
    }
  }

  async #probe(): Promise<void> {
    const result = await this.#prober.probe(this.#closed.signal);
    if (this.#closed.signal.aborted) return;
    const { metrics, log } = this.#context;
    const { id } = this.server;
    switch (result.kind) {
      case "ok":
        metrics.probed("ok", result.seconds);
        if (this.#failures > 0) {
          log("info", `server ${id} answers again`, { server: id });
          this.record(null);
        }
        this.#failures = 0;
        this.#answered = true;
        break;
      case "failed":
        metrics.probed("failed", result.seconds);
        this.#failures += 1;
        this.#answered = false;
        this.#failed(result.reason);
        break;
      case "gone":
        wakeUntilEnded(this.#timer);
        break;
      case "unknown":
        log("warn", `server ${id} could not be probed: ${result.reason}`, { server: id });
    }
  }

  #failed(reason: string): void {
    const most = this.#context.config.health.failures;
    if (this.#failures >= most) this.#endHung(reason);
    else {
      const { id } = this.server;
      const count = `${this.#failures} of ${most}`;
      this.#context.log("warn", `server ${id} did not answer (${count})`, { server: id, reason });
      this.record(`${reason} (${count})`);
    }
  }

  #endHung(reason: string): void {
    const { id, process } = this.server;
    this.#operations.begin("it hangs and could not be ended", id, async () => {
      if (!(await endHung(this.#context, this.server, reason))) return;
      this.#context.log("error", `server ${id} hung and was ended: ${reason}`, { server: id, serverPid: process?.pid });
      this.#restarts.note(id, "hang");
    });
  }

  /** Records why the server does not answer. Null records that it answers. */
  record(reason: string | null): void {
    this.#operations.begin("its health could not be recorded", this.server.id, async () => {
      await recordHealth(this.#context.store, this.server, reason);
    });
  }

  async close(): Promise<void> {
    this.#closed.abort();
    await this.#prober.close();
    await this.#ended;
  }
}

/** Checks all servers now, and a few times soon after, because a process closes its connections before it is dead. */
function wakeUntilEnded(timer: LoopTimer): void {
  timer.wake();
  for (const ms of STILL_ENDING_MS) timer.wakeAfter(ms);
}

class Prober {
  readonly #server: ServerRecord;
  readonly #health: Config["health"];
  readonly #timer: LoopTimer;
  #connection: RawConnection | null = null;
  #pings = 0;

  constructor(server: ServerRecord, health: Config["health"], timer: LoopTimer) {
    this.#server = server;
    this.#health = health;
    this.#timer = timer;
  }

  get localPort(): number | undefined {
    return this.#connection?.localPort;
  }

  /** Probes the server once. If the signal has aborted, the result has no meaning. */
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
        // This process could not check the server's process, so it does not know whether that process is alive.
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
    return { kind: "failed", reason, seconds };
  }

  async #ask(signal: AbortSignal): Promise<void> {
    const connection = await this.#connected(signal);
    await connection.request("ping", { message: "probe" }, signal);
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
      wakeUntilEnded(this.#timer); // the process has probably ended
    });
    return connection;
  }

  async close(): Promise<void> {
    const connection = this.#connection;
    this.#connection = null;
    await connection?.[Symbol.asyncDispose]();
  }
}

/** Decides when to restart a server that has ended, and when to give up on it. The keys of all maps are server ids. */
export class Restarts {
  readonly #clock: Clock;
  readonly #health: Config["health"];
  readonly #timer: LoopTimer;
  /** The time (`clock.now()`) at which to restart each server. */
  readonly #due = new Map<string, number>();
  /** For each server that we are about to restart, the reason why it ended. The metrics show it. */
  readonly #reasons = new Map<string, RestartReason>();
  /**
   * How many starts in a row failed. The server's record does not count a start that failed before anything was recorded.
   */
  readonly #refused = new Map<string, number>();
  /**
   * How many starts in a row failed because of a limit of this machine. Such starts are not a reason to give up on a
   * server.
   */
  readonly #starved = new Map<string, number>();
  readonly #givenUp = new Set<string>();

  constructor({ clock, config }: Pick<ServeContext, "clock" | "config">, timer: LoopTimer) {
    this.#clock = clock;
    this.#health = config.health;
    this.#timer = timer;
  }

  /** Records why a server has ended. */
  note(id: string, reason: RestartReason): void {
    this.#reasons.set(id, reason);
  }

  /** Forgets the failures of a server that somebody started by hand. */
  forgive(id: string): void {
    this.#refused.delete(id);
    this.#givenUp.delete(id);
  }

  /** Cancels the next start of a server, because it already runs or should not run. */
  cancel(id: string): void {
    this.#due.delete(id);
  }

  isHopeless(server: ServerRecord): boolean {
    return server.state === "failed" && this.#inARow(server) > MOST_RESTARTS;
  }

  /** @returns false if we had already given up on the server */
  giveUp(id: string): boolean {
    if (this.#givenUp.has(id)) return false;
    this.#givenUp.add(id);
    return true;
  }

  /** Whether it is time to start the server. The first call sets that time. */
  isDue(server: ServerRecord): boolean {
    const crashes = server.state === "failed" ? this.#inARow(server) : 0;
    return this.#clock.now() >= (this.#due.get(server.id) ?? this.#schedule(server.id, crashes));
  }

  #inARow({ id, crashes }: ServerRecord): number {
    return Math.max(crashes ?? 0, this.#refused.get(id) ?? 0);
  }

  begin(id: string): RestartReason {
    const reason = this.#reasons.get(id) ?? "start";
    this.#due.delete(id);
    this.#reasons.delete(id);
    return reason;
  }

  succeeded(id: string): void {
    this.#refused.delete(id);
    this.#starved.delete(id);
  }

  /**
   * Schedules the next start after a failed start. @param isStarved whether a limit of this machine made the start fail
   */
  failed({ id, crashes }: ServerRecord, isStarved: boolean): void {
    const count = isStarved ? (this.#starved.get(id) ?? 0) + 1 : (this.#refused.get(id) ?? crashes ?? 0) + 1;
    (isStarved ? this.#starved : this.#refused).set(id, count);
    this.#schedule(id, isStarved ? count + 1 : count);
  }

  #schedule(id: string, crashes: number): number {
    const waitMs = backoffMs(crashes, Math.min(FIRST_MS, this.#health.intervalMs / 3));
    const due = this.#clock.now() + waitMs;
    this.#due.set(id, due);
    if (waitMs > 0) this.#timer.wakeAfter(waitMs);
    return due;
  }
}

/** The wait before the second restart in a row, in milliseconds. It is shorter if servers are probed more often than usual. */
const FIRST_MS = 1_000;
/** The longest wait between two starts of a server that keeps ending, in milliseconds. */
const LONGEST_MS = 60_000;

/**
 * How long to wait, in milliseconds, before we restart a server that ended `crashes` times in a row. A random factor
 * between 0.5 and 1 prevents servers that ended together from starting again together ("equal jitter",
 * https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
 */
export function backoffMs(crashes: number, baseMs: number, random: () => number = Math.random): number {
  if (crashes <= 1) return 0;
  const full = Math.min(LONGEST_MS, baseMs * 2 ** Math.min(crashes - 2, 30));
  return full * (0.5 + random() / 2);
}
