import { creditsUsedUp } from "../../config/limits.js";

/** One AI credit in the unit in which the runtime counts. */
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

/** How many AI credits each session may use. Null without a limit, and with a provider, which counts no credits. */
export function creditLimit({ provider, session: { maxCredits } }: CreditConfig): number | null {
  return provider === null ? maxCredits : null;
}

/**
 * The limits with which a session is opened, in the form of the runtime: the lower of the fleet's credit limit and what the owner
 * asks for. The runtime forgets them when it unloads the session, so each opening by its owner sets them again.
 *
 * @param member whether another user opens the session, whose wish does not count. See {@link keepLimited}.
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
 * Gives a session that a member has opened the fleet's credit limit, unless its owner's lower one is in force.
 *
 * @param rpc the requests about the session, in the form of the SDK
 */
export async function keepLimited(config: CreditConfig, rpc: LimitsRpc): Promise<void> {
  const most = creditLimit(config);
  if (most === null) return;
  const { sessionLimits } = await rpc.metadata.snapshot();
  if (isWithin(sessionLimits, most)) return;
  await rpc.options.update({ sessionLimits: { maxAiCredits: most } }).catch((error: unknown) => {
    // The session has used up more. It gets no prompt then: see `assertCredits`.
    if (creditsInRefusal(error) === null) throw error;
  });
}

/** The AI credits of a session whose limits the runtime refused, because it has used more (as of 1.0.85). */
export function creditsInRefusal(error: unknown): number | null {
  const [, used] = (error instanceof Error && /has already used ([\d.]+) AI credits/.exec(error.message)) || [];
  return used === undefined ? null : Number(used);
}

/** Whether these limits of a session are at most so many credits. Absent ones are not. */
export function isWithin(limits: unknown, most: number): limits is { maxAiCredits: number } {
  const max = (limits as { maxAiCredits?: unknown } | null | undefined)?.maxAiCredits;
  return typeof max === "number" && max <= most;
}

/**
 * Refuses if a session has used up its AI credits. The runtime would begin the turn, and end it without an answer. It
 * reports the reason only in the first such turn (measured with 1.0.85).
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

/** The AI credits that a session has used, in the server's answer to `session.usage.getMetrics`. */
export function creditsUsed(metrics: unknown): number {
  const { totalNanoAiu } = (metrics ?? {}) as { totalNanoAiu?: unknown };
  return creditsIn(totalNanoAiu) ?? 0;
}

/** Whether the runtime has not run a tool because the session has used up its AI credits. The turn then ends. */
export function saysCut(event: { type: string; data: object }): boolean {
  if (event.type !== "tool.execution_complete") return false;
  return (event.data as { error?: { code?: unknown } }).error?.code === "session_limits_exhausted";
}
