import { isFleetError } from "../errors.js";
import type { EventLog, NewEvent } from "../model/events/event.js";

/**
 * Records what is about to happen, and then does it. So it never happens without its event. If it fails, another event shows
 * that.
 *
 * @throws FleetError `FLEET_EVENTS_UNWRITABLE` before anything was done; the error of the action.
 */
export async function audited<T>(
  events: EventLog,
  about: NewEvent | readonly NewEvent[],
  action: () => Promise<T>,
): Promise<T> {
  const all = [about].flat();
  await Promise.all(all.map(async (event) => await events.record(event)));
  try {
    return await action();
  } catch (error) {
    const code = isFleetError(error) ? error.code : "FLEET_INTERNAL";
    for (const event of all) events.note({ ...event, outcome: "failed", ...failure(event, code) });
    throw error;
  }
}

/** Keeps the event's own reason, because it shows which action failed. */
function failure({ reason = null, detail = null }: NewEvent, code: string): Pick<NewEvent, "reason" | "detail"> {
  if (reason === null) return { reason: code };
  return { detail: detail === null ? code : `${detail} (${code})` };
}
