import type { Config } from "@oclif/core";

const MOST_WORDS = 2;

/** Turns oclif's id "store:migrate" into the words that a user types: "store migrate". */
export function spoken(id: string): string {
  return id.replaceAll(":", " ");
}

/** The id of the command that the first words name, and the words after it. Undefined if they do not name a command. */
export function commandOf(args: readonly string[], config: Config): { id: string; rest: string[] } | undefined {
  for (let words = MOST_WORDS; words > 0; words--) {
    const id = args.slice(0, words).join(":");
    // Do not accept "store:migrate": a typed ":" does not separate words.
    if (args.length < words || args.slice(0, words).some((word) => word.includes(":"))) continue;
    if (config.findCommand(id) !== undefined) return { id, rest: args.slice(words) };
  }
  return undefined;
}
