import type { Config } from "@oclif/core";

/** The command that a command line begins with, of one word or of two (`token issue`), and what follows it. */
export function commandOf(args: readonly string[], config: Config): { id: string; rest: string[] } | undefined {
  for (const words of [1, 2]) {
    const id = args.slice(0, words).join(":");
    if (args.length >= words && config.findCommand(id) !== undefined) return { id, rest: args.slice(words) };
  }
  return undefined;
}
