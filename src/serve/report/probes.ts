import { abortable, deadline } from "../../runtime/clock.js";
import type { ServeLog } from "../context.js";
import { logFailure } from "../failures.js";
import type { FleetMetrics } from "./metrics.js";

/** Each reason is a sentence for people. An empty list means that all is well. */
type Reasons = readonly string[] | Promise<readonly string[]>;

/** The checks that the endpoint asks for: whether to replace the supervisor, and whether to send work to its host. */
export interface Health {
  /** Reasons to replace this process (`/healthz`). Trouble with a single server is not such a reason. */
  unhealthy(): Reasons;
  /** Reasons to send no new work to this host at the moment (`/readyz`). */
  unready(): Reasons;
}

export interface ProbesContext {
  health: Health;
  metrics: Pick<FleetMetrics, "text" | "contentType" | "judged" | "failed">;
  log: ServeLog;
  /** How long a health check may take before it counts as failed, in milliseconds. Default: 1,000. */
  checkMs?: number;
}

export interface ProbeAnswer {
  status: number;
  type: string;
  body: string;
}

/** Answers `/healthz`, `/readyz` and `/metrics`, or some of them. */
export interface Probes {
  /** Null if this object does not answer a probe at `path`. */
  answer(path: string): Promise<ProbeAnswer | null>;
}

export const PROBES: readonly string[] = ["/metrics", "/healthz", "/readyz"];
export const TEXT = "text/plain; charset=utf-8";

/** Answers the probes of a supervisor. */
export class HealthProbes implements Probes {
  readonly #context: ProbesContext;
  readonly #hasMetrics: boolean;

  constructor(context: ProbesContext, { hasMetrics = true } = {}) {
    this.#context = context;
    this.#hasMetrics = hasMetrics;
  }

  async answer(path: string): Promise<ProbeAnswer | null> {
    switch (path) {
      case "/healthz":
        return verdict(await reasonsOf("unhealthy", this.#context));
      case "/readyz":
        return verdict(await reasonsOf("unready", this.#context));
      case "/metrics":
        return this.#hasMetrics ? await scrape(this.#context) : null;
      default:
        return null;
    }
  }
}

async function scrape(options: ProbesContext): Promise<ProbeAnswer> {
  const [unhealthy, unready] = await Promise.all([reasonsOf("unhealthy", options), reasonsOf("unready", options)]);
  options.metrics.judged({ healthy: unhealthy.length === 0, ready: unready.length === 0 });
  try {
    return { status: 200, type: options.metrics.contentType, body: await options.metrics.text() };
  } catch (error) {
    logProbeFailure(options, error);
    return { status: 500, type: TEXT, body: "The metrics could not be collected; see the log of serve.\n" };
  }
}

function verdict(reasons: readonly string[]): ProbeAnswer {
  const ok = reasons.length === 0;
  return { status: ok ? 200 : 503, type: "application/json", body: `${JSON.stringify({ ok, reasons })}\n` };
}

/**
 * The reasons that a check returns. If the check itself fails or hangs, returns one reason that states this. The error
 * of the check is only logged, because it may name users.
 */
async function reasonsOf(check: keyof Health, options: ProbesContext): Promise<readonly string[]> {
  using limit = deadline(options.checkMs ?? 1000);
  try {
    return await abortable(Promise.resolve(options.health[check]()), limit.signal);
  } catch (error) {
    logProbeFailure(options, error);
    return limit.signal.aborted ? ["the check took too long"] : ["the check itself failed; see the log of serve"];
  }
}

export function logProbeFailure(options: ProbesContext, error: unknown): void {
  logFailure(options, "the health endpoint failed", error);
}
