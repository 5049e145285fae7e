import { PendingReply } from "../../sessions/use/turn-records.js";
import type { Argument } from "../arguments.js";
import type { FleetParts } from "../parts.js";

/** The arguments of each method of a group. The compiler reports a method that is missing in such a table. */
type Arguments<T> = { readonly [Name in keyof T]: readonly Argument[] };

type Method = (this: Group, ...args: unknown[]) => unknown;

export abstract class Group {
  protected readonly parts: FleetParts;

  constructor(parts: FleetParts) {
    this.parts = parts;
  }

  /** Makes each method of a group check its arguments, and refuse calls after the fleet is closed. */
  protected static guard<T extends Group>(prototype: T, table: Arguments<T>): void {
    for (const [name, parameters] of Object.entries<readonly Argument[]>(table)) {
      const method = (prototype as unknown as Record<string, Method>)[name] as Method;
      const read = (group: Group, given: readonly unknown[]) => {
        group.parts.assertOpen();
        return parameters.map(([parameter, check], at) => check(given[at], parameter));
      };
      const value = Object.defineProperty(guarded(name, method, read), "length", { value: parameters.length });
      Object.defineProperty(prototype, name, { value, writable: true, configurable: true });
    }
  }
}

/** Wraps a method. A failed check makes the method's iterator, {@link PendingReply} or promise fail. */
function guarded(name: string, method: Method, read: (group: Group, given: readonly unknown[]) => unknown[]): Method {
  if (name.startsWith("follow")) {
    return function (...given) {
      try {
        return method.apply(this, read(this, given));
      } catch (error) {
        return failing(error);
      }
    };
  }
  if (["send", "use", "turn"].includes(name)) {
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

// biome-ignore lint/correctness/useYield: the iterator fails at its first step
async function* failing(error: unknown): AsyncGenerator<never> {
  await Promise.reject(error);
}
