import type { Command, Config, Interfaces } from "@oclif/core";

const MOST_WORDS = 2;

/** The flags that an alias adds to its command: "status" means "top --once". */
const ALIAS_FLAGS: Readonly<Record<string, readonly string[]>> = { status: ["--once"] };

interface Words {
  id: string;
  rest: string[];
}

/** Turns oclif's id "store:migrate" into the words that a user types: "store migrate". */
export function spoken(id: string): string {
  return id.replaceAll(":", " ");
}

/**
 * The id of the command that the first words name. `rest` has the other words, after the flags that an alias adds.
 * Undefined if the words name no command.
 */
export function commandOf(args: readonly string[], config: Config): Words | undefined {
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

const FLAGS: Readonly<Record<string, "help" | "version" | "json">> = {
  "-h": "help",
  "--help": "help",
  "-v": "version",
  "--version": "version",
  "--json": "json",
};

/**
 * Finds the command that answers `--help` or `--version`, which work with every command. An empty command line means
 * `--help`. Returns "one line" for `--version` without `--json`: the caller then prints one line and needs no command.
 * Returns undefined for any other command line.
 */
export function standardCommand(args: readonly string[], config: Config): Words | "one line" | undefined {
  const command = commandOf(args, config);
  const asked = standardFlagsIn(args, config.findCommand(command?.id ?? "")?.flags ?? {});
  const json = asked.has("json") ? ["--json"] : [];
  if (command !== undefined) {
    if (asked.has("help")) return { id: "help", rest: [...spoken(command.id).split(" "), ...json] };
    return asked.has("version") ? version(json) : undefined;
  }
  const [first] = args;
  if (first === undefined) return { id: "help", rest: [] };
  const words = args.filter((word) => FLAGS[word] === undefined);
  const isTopic = words.length === 1 && topicOf(words[0] ?? "", config) !== undefined;
  if (asked.has("version")) return isTopic || FLAGS[first] === "version" ? version(json) : undefined;
  return isTopic || FLAGS[first] === "help" ? { id: "help", rest: [...words, ...json] } : undefined;
}

function version(json: readonly string[]): Words | "one line" {
  return json.length > 0 ? { id: "version", rest: [...json] } : "one line";
}

/** The standard flags among the words before `--`. A word that is the value of another flag does not count. */
function standardFlagsIn(words: readonly string[], flags: Command.Loadable["flags"]): Set<string> {
  const found = new Set<string>();
  for (let at = 0; at < words.length && words[at] !== "--"; at++) {
    const word = words[at] ?? "";
    const flag = Object.values(flags).find(({ name, char }) => word === `--${name}` || word === `-${char}`);
    if (flag?.type === "option") at++;
    else if (FLAGS[word] !== undefined) found.add(FLAGS[word]);
  }
  return found;
}

const SHORT = /^(?:-o=?|--output=)json$/;

/**
 * Replaces `--output json` with `--json` if the command's `--output` accepts `json`. So both have exactly the same
 * effect, and all other code has to know only `--json`.
 */
export function withJsonFlag(args: readonly string[], config: Config): string[] {
  const command = commandOf(args, config);
  const output = command === undefined ? undefined : config.findCommand(command.id)?.flags.output;
  if (output?.type !== "option" || output.options?.includes("json") !== true) return [...args];
  const end = args.indexOf("--");
  const own = end === -1 ? args : args.slice(0, end);
  const replaced = own.flatMap((arg, at) => {
    if (SHORT.test(arg) || (arg === "json" && isOutput(own[at - 1]))) return ["--json"];
    return isOutput(arg) && own[at + 1] === "json" ? [] : [arg];
  });
  return [...replaced, ...args.slice(own.length)];
}

function isOutput(arg: string | undefined): boolean {
  return arg === "-o" || arg === "--output";
}
