import { creditsUsedUp } from "../../config/limits.js";

/** The runtime counts in billionths of an AI credit. */
const NANO = 1e9;

/** The AI credits in an amount that the runtime reports. Null if it is not an amount. */
export function creditsIn(nano: unknown): number | null {
  return typeof nano === "number" && Number.isFinite(nano) && nano >= 0 ? nano / NANO : null;
}

/** The limits of a session in the form of the runtime. */
export interface SessionLimits {
  maxAiCredits?: number;
}

interface LimitsRpc {
  metadata: { snapshot: () => Promise<{ sessionLimits?: unknown }> };
  options: { update: (params: { sessionLimits: SessionLimits }) => Promise<unknown> };
}

export interface CreditConfig {
  provider: object | null;
  session: { maxCredits: number | null };
}

/**
 * How many AI credits each session may use. Null without a limit, and with a provider, because only GitHub's models use
 * credits.
 */
export function creditLimit({ provider, session: { maxCredits } }: CreditConfig): number | null {
  return provider === null ? maxCredits : null;
}

/**
 * The limits with which a session is opened, in the form of the runtime: the lower of the fleet's credit limit and the
 * limit that the owner asks for. The runtime forgets them when it unloads the session, so each opening by its owner
 * sets them again.
 *
 * @param member whether a member opens the session. Only the owner can ask for a limit. See {@link keepLimited}.
 */
export function sessionLimitsOf(
  config: CreditConfig,
  asked: unknown,
  member: boolean,
): { sessionLimits?: SessionLimits } {
  if (member) return {};
  const most = creditLimit(config);
  if (most === null) return asked === undefined ? {} : { sessionLimits: asked as SessionLimits };
  return { sessionLimits: isWithin(asked, most) ? asked : { maxAiCredits: most } };
}

/**
 * Sets the fleet's credit limit on a session that a member has opened, unless the session already has this limit or a
 * lower one.
 *
 * @param rpc the requests about the session, in the form of the SDK
 */
export async function keepLimited(config: CreditConfig, rpc: LimitsRpc): Promise<void> {
  const most = creditLimit(config);
  if (most === null) return;
  const { sessionLimits } = await rpc.metadata.snapshot();
  if (isWithin(sessionLimits, most)) return;
  await rpc.options.update({ sessionLimits: { maxAiCredits: most } }).catch((error: unknown) => {
    // The runtime refuses a limit below the credits that the session has used. `assertCredits` refuses its next prompt.
    if (creditsInRefusal(error) === null) throw error;
  });
}

/**
 * The AI credits that a session has used, from the error with which the runtime refuses a limit below them (as of
 * 1.0.85). Null for any other error.
 */
export function creditsInRefusal(error: unknown): number | null {
  const [, used] = (error instanceof Error && /has already used ([\d.]+) AI credits/.exec(error.message)) || [];
  return used === undefined ? null : Number(used);
}

/** Whether these limits of a session allow at most `most` credits. False if there is no limit. */
export function isWithin(limits: unknown, most: number): limits is { maxAiCredits: number } {
  const max = (limits as { maxAiCredits?: unknown } | null | undefined)?.maxAiCredits;
  return typeof max === "number" && max <= most;
}

/**
 * Refuses the turn if a session has used up its AI credits. Otherwise, the runtime would begin the turn and end it
 * without an answer. It reports the reason only in the first such turn (measured with 1.0.85).
 *
 * @param metrics asks the server for `session.usage.getMetrics`. Called only if there is a credit limit.
 * @throws FleetError `FLEET_LIMIT_REACHED`
 */
export async function assertCredits(
  config: CreditConfig,
  sessionId: string,
  metrics: () => Promise<unknown>,
): Promise<void> {
  const max = creditLimit(config);
  if (max === null) return;
  const used = creditsUsed(await metrics());
  if (used >= max) throw creditsUsedUp(sessionId, { used, max });
}

/** The AI credits that a session has used, from the server's answer to `session.usage.getMetrics`. */
export function creditsUsed(metrics: unknown): number {
  const { totalNanoAiu } = (metrics ?? {}) as { totalNanoAiu?: unknown };
  return creditsIn(totalNanoAiu) ?? 0;
}

/**
 * Whether the event reports that the runtime did not run a tool, because the session has used up its AI credits. The
 * turn then ends.
 */
export function saysCut(event: { type: string; data: object }): boolean {
  if (event.type !== "tool.execution_complete") return false;
  return (event.data as { error?: { code?: unknown } }).error?.code === "session_limits_exhausted";
}
