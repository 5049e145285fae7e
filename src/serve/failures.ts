import type { Clock } from "../base/clock.js";
import { type FleetErrorCode, isFleetError } from "../base/errors.js";
import type { ServeLog } from "./context.js";
import type { FleetMetrics } from "./report/metrics.js";

interface Reports {
  log: ServeLog;
  metrics: Pick<FleetMetrics, "failed">;
}

/** @returns the code under which it counted the failure */
function countFailure({ metrics }: Reports, error: unknown): FleetErrorCode {
  const code = isFleetError(error) ? error.code : "FLEET_INTERNAL";
  metrics.failed(code);
  return code;
}

/** Logs and counts a failure that does not end the supervisor. */
export function logFailure(
  reports: Reports,
  what: string,
  error: unknown,
  fields: Readonly<Record<string, unknown>> = {},
): void {
  const code = countFailure(reports, error);
  const stack = code === "FLEET_INTERNAL" && error instanceof Error ? { stack: error.stack } : {};
  reports.log("error", `${what}: ${messageOf(error)}`, { ...fields, code, ...stack });
}

/** Does work whose failure does not end the supervisor. Logs and counts the failure. */
export async function attempt(reports: Reports, failure: string, work: () => unknown): Promise<void> {
  try {
    await work();
  } catch (error) {
    logFailure(reports, failure, error);
  }
}

/** For each regular check: the text to log when it fails, and the text to log when it succeeds again. */
const WELL_AGAIN = {
  "the servers could not be checked": "the servers can be checked again",
  "the use of the servers could not be checked": "the servers can be checked again",
  "the proxy of servers could not be started": "the proxy of servers runs again",
  "the modes of the state folder could not be restored": "the modes of the state folder are right again",
  "the shared storage is not available": "the shared storage is available again",
} as const;

/** Runs the regular checks. Logs a lasting failure, such as a full disk, once and not every second. */
export class RegularChecks {
  readonly #reports: Reports;
  /** The error messages of the checks that fail at the moment. */
  readonly #failing = new Map<keyof typeof WELL_AGAIN, string>();

  constructor(reports: Reports) {
    this.#reports = reports;
  }

  /** @returns the result of the check, or null when it fails */
  async run<T>(failure: keyof typeof WELL_AGAIN, check: () => Promise<T>): Promise<T | null> {
    try {
      const result = await check();
      if (this.#failing.delete(failure)) this.#reports.log("info", WELL_AGAIN[failure]);
      return result;
    } catch (error) {
      const message = messageOf(error);
      if (this.#failing.get(failure) === message) countFailure(this.#reports, error);
      else logFailure(this.#reports, failure, error);
      this.#failing.set(failure, message);
      return null;
    }
  }

  get failing(): string[] {
    return [...this.#failing].map(([failure, message]) => `${failure}: ${message}`);
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Times the rounds of the supervisor's loop. A change of a server starts the next round early. */
export class LoopTimer {
  readonly #clock: Clock;
  #wakeNow: () => void = () => undefined;
  #isDue = false;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Starts the next round at once. */
  wake(): void {
    this.#isDue = true;
    this.#wakeNow();
  }

  /** Starts the next round after `ms` milliseconds at the latest. */
  wakeAfter(ms: number): void {
    this.#clock.after(ms, () => this.wake());
  }

  /** Waits for the next round, at most `ms` milliseconds. */
  async next(ms: number): Promise<void> {
    if (!this.#isDue) {
      await new Promise<void>((resolve) => {
        // `ref`: this timer keeps the process alive.
        const cancel = this.#clock.after(ms, resolve, { ref: true });
        this.#wakeNow = () => {
          cancel();
          resolve();
        };
      });
    }
    this.#isDue = false;
    this.#wakeNow = () => undefined;
  }
}
