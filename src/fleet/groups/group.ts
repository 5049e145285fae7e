import { option } from "../../base/errors.js";
import { type Argument, named } from "../../operations/fields.js";
import { PendingReply } from "../../sessions/use/turn-records.js";
import type { FleetParts } from "../parts.js";

/** The arguments of each method of a group. The compiler reports a method that is missing in such a table. */
type Arguments<T> = { readonly [Name in keyof T]: readonly (string | Argument)[] };

type Method = (this: Group, ...args: unknown[]) => unknown;

export abstract class Group {
  protected readonly parts: FleetParts;

  constructor(parts: FleetParts) {
    this.parts = parts;
  }

  /** Makes each method of a group check its arguments, and refuse calls after the fleet is closed. */
  protected static guard<T extends Group>(prototype: T, table: Arguments<T>): void {
    for (const [name, row] of Object.entries<readonly (string | Argument)[]>(table)) {
      const parameters = row.map((each) => (typeof each === "string" ? named(each) : each));
      const method = (prototype as unknown as Record<string, Method>)[name] as Method;
      const fail = failureOf(name);
      const value = function (this: Group, ...given: unknown[]) {
        try {
          this.parts.assertOpen();
          return method.apply(
            this,
            parameters.map(([parameter, check], at) => check(given[at], option(parameter))),
          );
        } catch (error) {
          return fail(error);
        }
      };
      Object.defineProperty(value, "length", { value: parameters.length });
      Object.defineProperty(prototype, name, { value, writable: true, configurable: true });
    }
  }
}

/** Returns how a method fails if a check fails: its iterator, {@link PendingReply} or promise fails. */
function failureOf(name: string): (error: unknown) => unknown {
  if (name.startsWith("follow")) return failing;
  const fail = async (error: unknown) => await Promise.reject(error);
  return ["send", "use", "turn"].includes(name) ? (error) => new PendingReply(async () => await fail(error)) : fail;
}

// biome-ignore lint/correctness/useYield: the iterator fails at its first step
async function* failing(error: unknown): AsyncGenerator<never> {
  await Promise.reject(error);
}
