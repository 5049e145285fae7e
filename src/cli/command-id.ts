import type { Command, Config } from "@oclif/core";
import type { Suggestion } from "../base/errors.js";
import { printable, redact, shellQuote } from "../base/values/text.js";
import { unmarked } from "./prompt.js";

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
export function ownCommands(config: Config): Command.Loadable[] {
  return config.commands.filter((command) => !isAlias(command));
}

function isAlias({ id, aliases }: Command.Loadable): boolean {
  return aliases.includes(id);
}

/** The topic with this name, such as `token` for commands such as `token issue`; undefined if there is none. */
export function topicOf(name: string, config: Config): { name: string; description?: string | undefined } | undefined {
  return name.includes(":") ? undefined : config.findTopic(name);
}

/** The words of a refused command line. */
interface Typed {
  args: readonly string[];
  /** The values of the flags by their names. */
  flags: ReadonlyMap<string, string>;
  /** Whether arguments are missing. If not, there are too many. */
  isMissing: boolean;
}

/** Reads the typed words from an error that oclif threw. */
export function typedIn(error: Error): Pick<Typed, "args" | "flags"> {
  const { raw = [] } = (error as { parse?: { output?: { raw?: readonly Token[] } } }).parse?.output ?? {};
  const ofType = (type: Token["type"]) => raw.filter((token) => token.type === type);
  return {
    args: ofType("arg").map(({ input }) => unmarked(input)),
    flags: new Map(ofType("flag").map(({ flag = "", input }) => [flag, input])),
  };
}

interface Token {
  type: "arg" | "flag";
  flag?: string;
  input: string;
}

/** Suggests command lines of `command` with the typed words in the right places; empty if there is no advice. */
export function meantArguments(command: string, typed: Typed): Suggestion[] {
  const advice = ADVICE[command]?.(typed) ?? [];
  // Leave out lines that redact() changes, because they may contain a secret. Leave out very long lines, too.
  return advice.filter((line) => redact(line) === line && line.length <= 200);
}

const ADVICE: Readonly<Record<string, (typed: Typed) => Suggestion[]>> = {
  send: ({ args: [session = "SESSION", ...words], flags, isMissing }) => {
    const user = word(flags.get("user") ?? "USER");
    return isMissing
      ? [`copilotfleet send ${word(session)} - --user ${user} # reads the prompt from standard input`]
      : [
          `copilotfleet send ${word(session)} ${word(words.join(" "))} --user ${user} # quotes make the text one argument`,
        ];
  },
  create: inQuotes,
  resume: inQuotes,
  describe: ({ args: [kind = "", name] }) => {
    return KINDS.includes(kind) && name !== undefined ? [`copilotfleet describe ${kind}/${word(name)}`] : [];
  },
  unlock: ({ args: [session = "SESSION"], isMissing }) =>
    isMissing ? [] : [`copilotfleet unlock ${word(session)} --token TOKEN`],
};

/** The kinds of things that `describe` shows. */
const KINDS = ["session", "server", "user"];

function inQuotes({ flags }: Typed): Suggestion[] {
  return flags.has("prompt") ? ["Put the whole prompt in quotes."] : [];
}

function word(text: string): string {
  return shellQuote(printable(text));
}
