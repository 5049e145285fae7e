import { printable, shellQuote } from "../config/values/text.js";
import { type FleetError, fillIn, type Placeholder } from "../errors.js";

/** The user, the session and the server that a command was given, as words for a shell. */
export type Given = Readonly<Partial<Record<Placeholder, string>>>;

interface Parsed {
  flags: object;
  args: object;
  /** All positional arguments. `args` has only those that the command declares by name. */
  argv: readonly unknown[];
}

/** Reads the user, the session and the server from flags and arguments, which have the same names in all commands. */
export function givenIn({ flags, args, argv }: Parsed, { strict }: { strict: boolean }): Given {
  const { user, id, session = id, server }: Record<string, unknown> = { ...args, ...flags };
  // If the command was given several sessions or servers, leave them out, because an error may concern any of them.
  const isOne = strict || argv.length === 1;
  const values = Object.entries({ USER: user, ...(isOne ? { SESSION: session, SERVER: server } : {}) });
  return Object.fromEntries(
    values.flatMap(([name, value]) => (typeof value === "string" ? [[name, shellQuote(printable(value))]] : [])),
  );
}

/** Replaces placeholders such as USER in the suggestions of an error with the given values. */
export function withGiven(error: FleetError, given: Given): FleetError {
  return error.reworded(({ suggestions }) => ({ suggestions: suggestions.map((text) => fillIn(text, given)) }));
}
