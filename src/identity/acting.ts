import { AsyncLocalStorage } from "node:async_hooks";
import { isFleetError } from "../base/errors.js";
import type { Actor, EventLog, NewEvent } from "../base/event.js";

const current = new AsyncLocalStorage<Partial<Actor>>();

/**
 * Runs `work` on behalf of an actor. The events of this work, and of everything that it starts, name this actor.
 * `actor` contains only the fields that differ from the actor of the process.
 */
export function actingAs<T>(actor: Partial<Actor>, work: () => T): T {
  return current.run(actor, work);
}

/**
 * The fields in which the actor of the calling code differs from the actor of the process; undefined outside of
 * {@link actingAs}.
 */
export function currentActor(): Partial<Actor> | undefined {
  return current.getStore();
}

/**
 * Records the events of an action, and then runs the action. So the action never happens without its events. If the
 * action fails, adds each event to the log once more, with the outcome `failed` and the error code.
 *
 * @throws FleetError `FLEET_EVENTS_UNWRITABLE` when the events cannot be written, and then the action does not run;
 * otherwise the error of the action.
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

/**
 * Puts the error code into the reason of the event. If the event already has a reason, puts the code into the detail,
 * because that reason shows which action failed.
 */
function failure({ reason = null, detail = null }: NewEvent, code: string): Pick<NewEvent, "reason" | "detail"> {
  if (reason === null) return { reason: code };
  return { detail: detail === null ? code : `${detail} (${code})` };
}
