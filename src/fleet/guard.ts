import { PendingReply } from "../sessions/use/reply.js";
import type { Argument } from "./arguments.js";

/** The arguments of every method. A method that is not listed is a compile error. */
type Arguments<T> = { readonly [Name in keyof T]: readonly Argument[] };

type Method = (this: object, ...args: unknown[]) => unknown;

/**
 * Makes each method of a class check its arguments, and refuse calls after the fleet is closed. Doing this in one place
 * ensures that no method omits it.
 *
 * @param table a method without arguments has an empty list
 * @param assertOpen throws if the fleet of the object is closed
 */
export function guardMethods<T extends object>(prototype: T, table: Arguments<T>, assertOpen: (of: T) => void): void {
  for (const [name, parameters] of Object.entries<readonly Argument[]>(table)) {
    const method = (prototype as Record<string, unknown>)[name] as Method;
    const read = (of: object, given: readonly unknown[]) => {
      assertOpen(of as T);
      return parameters.map(([parameter, check], at) => check(given[at], parameter));
    };
    const value = Object.defineProperty(guarded(name, method, read), "length", { value: parameters.length });
    Object.defineProperty(prototype, name, { value, writable: true, configurable: true });
  }
}

/**
 * Wraps a method so that a failed check is reported in the same way as the method's result: by its iterator, its
 * {@link PendingReply} or its promise.
 */
function guarded(name: string, method: Method, read: (of: object, given: readonly unknown[]) => unknown[]): Method {
  if (name === "followLog") {
    return async function* (...given) {
      yield* method.apply(this, read(this, given)) as AsyncIterable<unknown>;
    };
  }
  if (name === "send" || name === "exchange") {
    return function (...given) {
      try {
        return method.apply(this, read(this, given));
      } catch (error) {
        return new PendingReply(async () => await Promise.reject(error));
      }
    };
  }
  return async function (...given) {
    return await method.apply(this, read(this, given));
  };
}
