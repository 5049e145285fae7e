import { AsyncLocalStorage } from "node:async_hooks";
import type { Actor } from "../model/events/event.js";

const current = new AsyncLocalStorage<Partial<Actor>>();

/**
 * Runs work for somebody. The events of this work, and of everything that it starts, name that actor. Only the differences from
 * the actor of the process are given.
 */
export function actingAs<T>(actor: Partial<Actor>, work: () => T): T {
  return current.run(actor, work);
}

/** The actor for whom the calling code works; undefined if it is the actor of the process. */
export function currentActor(): Partial<Actor> | undefined {
  return current.getStore();
}
