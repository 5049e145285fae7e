/** One AI credit in the unit in which the runtime counts. */
const NANO = 1e9;

/** The AI credits in an amount that the runtime reports. Null if it is not an amount. */
export function creditsIn(nano: unknown): number | null {
  return typeof nano === "number" && Number.isFinite(nano) && nano >= 0 ? nano / NANO : null;
}

interface CappedConfig {
  provider: object | null;
  session: { maxCredits: number | null };
}

/** The cap on the AI credits of each session. Null without a cap, and with a provider, which counts no credits. */
export function creditCap({ provider, session: { maxCredits } }: CappedConfig): number | null {
  return provider === null ? maxCredits : null;
}

/**
 * The limits of a session in the form of the runtime: the lower of the fleet's cap and what the client asks for. The runtime
 * forgets them when it unloads the session, so each opening sets them again.
 */
export function sessionLimitsOf(config: CappedConfig, asked: unknown): { sessionLimits?: { maxAiCredits: number } } {
  const cap = creditCap(config);
  if (cap === null) return {};
  return { sessionLimits: { maxAiCredits: isWithin(asked, cap) ? asked.maxAiCredits : cap } };
}

/** Whether these limits of a session are at most the cap. Absent ones are not. */
export function isWithin(limits: unknown, cap: number): limits is { maxAiCredits: number } {
  const max = (limits as { maxAiCredits?: unknown } | null | undefined)?.maxAiCredits;
  return typeof max === "number" && max <= cap;
}

/** Whether the runtime reports that it asks the model no more, because the session has used up its AI credits. */
export function saysCapped(event: { type: string; data: unknown }): boolean {
  // The SDK has no type for this event (1.0.14).
  if (event.type !== "model.response_limits_status") return false;
  return (event.data as { state?: unknown } | undefined)?.state === "blocked";
}
