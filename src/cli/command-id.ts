import type { Config } from "@oclif/core";

/** How many words the longest command has: `store migrate`. */
const MOST_WORDS = 2;

/** A command as it is typed: oclif's id "store:migrate" is "store migrate". */
export function spoken(id: string): string {
  return id.replaceAll(":", " ");
}

/** The id of the command that the first words name, and what follows it; undefined when they name none. */
export function commandOf(args: readonly string[], config: Config): { id: string; rest: string[] } | undefined {
  for (let words = MOST_WORDS; words > 0; words--) {
    const id = args.slice(0, words).join(":");
    // A ":" that was typed is no space.
    if (args.length < words || args.slice(0, words).some((word) => word.includes(":"))) continue;
    if (config.findCommand(id) !== undefined) return { id, rest: args.slice(words) };
  }
  return undefined;
}
