import { asSentence } from "../../config/values/text.js";

/**
 * For these statuses of a model service, the runtime (1.0.85) reports a text of its own. So the model gateway answers
 * with statuses for which the runtime reports the text in the answer.
 */
const SHOWN: Readonly<Record<number, number>> = { 401: 424, 403: 422, 404: 422 };

export function shownStatus(status: number): number {
  return SHOWN[status] ?? status;
}

/** Whether a model service or the model gateway refused the credential, by the status in a `session.error`. */
export function isRefusedCredential(status: unknown): boolean {
  return status === 401 || status === SHOWN[401];
}

const RETRIED = /^Failed to get response from the AI model; retried (\d+) times? \([^)]*\) Last error: /;
/** The status that the runtime puts before a message of the model gateway, which contains the service's own status. */
const STATUS = /^(?:42[24]|\d{3}(?= https?:\/\/)) /;
const VARIABLES = "COPILOT_PROVIDER_API_KEY, COPILOT_PROVIDER_API_KEY_COMMAND, or COPILOT_PROVIDER_BEARER_TOKEN";
const SETTINGS = "provider.apiKeyEnv, provider.apiKeyFile or provider.apiKeyCommand";

/** Returns the reason in the message of a `session.error`, with settings of the fleet instead of the runtime's. */
export function reasonOf(message: string): string {
  const retries = RETRIED.exec(message)?.[1];
  const text = message
    .replace(RETRIED, "")
    .replace(STATUS, "")
    .replace(VARIABLES, SETTINGS)
    .replace(/\s*\n\s*/g, " ");
  return retries === undefined ? text : `${asSentence(text)} The server gave up after ${Number(retries) + 1} tries.`;
}

/** The same event with {@link reasonOf} as its message if it is a `session.error`. */
export function withReason<Event extends { type: string; data: object }>(event: Event): Event {
  if (event.type !== "session.error" || !("message" in event.data)) return event;
  return { ...event, data: { ...event.data, message: reasonOf(String(event.data.message)) } };
}

/** Whether the same prompt may succeed soon, because the runtime itself has tried again. Takes both forms of a message. */
export function mayPass(message: string): boolean {
  return RETRIED.test(message) || /The server gave up after \d+ tries\.$|^Could not connect to local/.test(message);
}
