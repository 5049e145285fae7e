import { AsyncLocalStorage } from "node:async_hooks";
import type { Actor } from "../model/events/event.js";

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
