import type { Command, Config, Interfaces } from "@oclif/core";

const MOST_WORDS = 2;

/** The flags that an alias adds to its command: "status" means "top --once". */
const ALIAS_FLAGS: Readonly<Record<string, readonly string[]>> = { status: ["--once"] };

/** Turns oclif's id "store:migrate" into the words that a user types: "store migrate". */
export function spoken(id: string): string {
  return id.replaceAll(":", " ");
}

/**
 * The id of the command that the first words name. `rest` has the other words, after the flags that an alias adds.
 * Undefined if the words name no command.
 */
export function commandOf(args: readonly string[], config: Config): { id: string; rest: string[] } | undefined {
  for (let words = MOST_WORDS; words > 0; words--) {
    const name = args.slice(0, words).join(":");
    // Do not accept "store:migrate": a typed ":" does not separate words.
    if (args.length < words || args.slice(0, words).some((word) => word.includes(":"))) continue;
    const command = config.findCommand(name);
    if (command === undefined) continue;
    const id = isAlias(command) ? ownCommands(config).find(({ aliases }) => aliases.includes(name))?.id : name;
    return { id: id ?? name, rest: [...(ALIAS_FLAGS[name] ?? []), ...args.slice(words)] };
  }
  return undefined;
}

/** All commands, each only once. `config.commands` contains a command again under each of its aliases. */
export function ownCommands(config: Interfaces.Config): Command.Loadable[] {
  return (config.commands as Command.Loadable[]).filter((command) => !isAlias(command));
}

function isAlias({ id, aliases }: Command.Loadable): boolean {
  return aliases.includes(id);
}

/** The topic with this name, such as `token` for commands such as `token issue`; undefined if there is none. */
export function topicOf(
  name: string,
  config: Interfaces.Config,
): { name: string; description?: string | undefined } | undefined {
  return name.includes(":") ? undefined : config.findTopic(name);
}
