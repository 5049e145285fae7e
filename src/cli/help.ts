import { type Command, CommandHelp, type Config, Help } from "@oclif/core";
import { errorGroups } from "../base/errors/explanation.js";
import { oneOf } from "../base/values/text.js";
import { commandOf, ownCommands, topicOf } from "./command-id.js";
import { colour } from "./render/colour.js";
import { terminalWidth } from "./render/table.js";
import { unknownCommand } from "./usage-error.js";

/** The width of help that is not printed on a terminal. */
const PLAIN_WIDTH = 80;
/** The greatest width of help, because longer lines are hard to read. */
const WIDEST = 120;

/**
 * Renders the help of the command or topic that the words name. Without words, renders the list of all commands.
 *
 * @throws FleetError `FLEET_USAGE_INVALID` if there is no such command.
 */
export function renderHelp(words: readonly string[], config: Config, width = widthOfHelp()): string {
  const help = new FleetHelp(config, {
    docopts: false,
    flagSortOrder: "none",
    maxWidth: width,
    stripAnsi: colour.level === 0,
  });
  if (words.length === 0) return help.root();
  const command = config.findCommand(commandOf(words, config)?.id ?? "");
  if (command !== undefined) return help.ofCommand(command);
  const topic = words.length === 1 ? topicOf(words[0] ?? "", config) : undefined;
  if (topic === undefined) throw unknownCommand(words, config);
  return help.ofTopic(topic);
}

function widthOfHelp(): number {
  const width = terminalWidth();
  return Number.isFinite(width) ? Math.min(width, WIDEST) : PLAIN_WIDTH;
}

/** Fills in the name of the command, which is the only template in our texts. oclif's templates load a library. */
function filledIn(text: string): string {
  return text.replaceAll("<%= config.bin %>", "copilotfleet");
}

class FleetCommandHelp extends CommandHelp {
  override render = (text: string) => filledIn(text).replaceAll("<%= command.id %>", this.command.id);

  /** Not "(required)" beside a flag whose default depends on the person who runs the command. */
  protected override flags(flags: Command.Flag.Any[]): [string, string | undefined][] | undefined {
    return super.flags(flags.map((flag) => (flag.noCacheDefault ? { ...flag, required: false } : flag)));
  }

  /** oclif's usage line lists all flags. */
  protected override defaultUsage(): string {
    const required = Object.values(this.command.flags).filter((flag) => flag.required);
    const values = required.map((flag) => `--${flag.name}${flag.type === "option" ? ` ${flag.helpValue}` : ""}`);
    return [super.defaultUsage(), ...values, "[FLAGS]"].join(" ");
  }
}

/** oclif's own help, with the commands in groups. */
class FleetHelp extends Help {
  protected override CommandHelpClass = FleetCommandHelp;
  override render = filledIn;

  ofCommand(command: Command.Loadable): string {
    const { summary = "", flags } = command;
    // oclif aligns a flag without a letter only if it is not the first one.
    const sorted = Object.entries<Command.Flag.Cached>({ help: HELP, ...flags }).sort(
      ([, a], [, b]) => Number(!a.char) - Number(!b.char),
    );
    const shown = Object.fromEntries(sorted.map(([name, flag]) => [name, { ...flag, description: describe(flag) }]));
    return `${this.wrap(summary)}\n\n${this.formatCommand({ ...command, summary: undefined, flags: shown } as never)}`;
  }

  ofTopic({ name, description = "" }: { name: string; description?: string | undefined }): string {
    const commands = ownCommands(this.config).filter(({ id }) => id.startsWith(`${name}:`));
    return [
      this.wrap(description),
      this.section("USAGE", `$ ${this.config.bin} ${name} COMMAND`),
      this.formatCommands(commands.map((each) => ({ ...each }))), // copies, because oclif changes the ids
    ].join("\n\n");
  }

  root(): string {
    const { config } = this;
    const texts = new Map(
      ownCommands(config).map(({ id, summary = "" }): [string, string] => {
        const topic = topicOf(id.split(":")[0] ?? "", config);
        return topic === undefined ? [id, summary] : [topic.name, topic.description ?? ""];
      }),
    );
    const exits = errorGroups().map(({ exit, title }) => `${exit} ${title[0]?.toLowerCase()}${title.slice(1)}`);
    const { description = "", homepage } = config.pjson;
    const list = (items: [string, string][]) => this.renderList(items, { indentation: 2, spacer: "\n" });
    const sections = [
      this.wrap(`${description}.`),
      this.section("USAGE", `$ ${config.bin} COMMAND [ARGUMENTS] [FLAGS]`),
      ...GROUPS.map(({ title, commands }) =>
        this.section(title, list(commands.map((name) => [name, texts.get(name) ?? ""]))),
      ),
      this.section("EXIT CODES", this.wrap(`0 done; ${exits.join("; ")}; 130 and 143 ended by a signal`)),
      this.section(
        "MORE",
        list([
          [`${config.bin} help COMMAND`, "flags and examples of a command"],
          [`${config.bin} explain CODE`, "meaning of an error code"],
          // Before the first release, package.json has a placeholder in capital letters.
          ...[["Documentation", homepage] as [string, string]].filter(
            ([, page]) => !(page ?? "REPLACE").includes("REPLACE"),
          ),
        ]),
      ),
    ];
    return sections.join("\n\n");
  }
}

function describe({ name, description = "", ...flag }: Command.Flag.Cached): string {
  if (name === "json") return "print the result or the error as JSON";
  const { options } = flag as { options?: readonly string[] };
  return options === undefined ? description : `${description} (${oneOf(options)})`;
}

const HELP: Command.Flag.Cached = {
  name: "help",
  char: "h",
  type: "boolean",
  allowNo: false,
  description: "show this help",
  helpGroup: "GLOBAL",
};

/** The commands in the order in which help lists them. The name of a topic stands for all its commands. */
const LISTED = {
  SERVERS: "spawn ps logs stop restart drain route connect",
  SESSIONS: "create send chat resume list transcript delete export import evict lock unlock",
  USERS: "user token limit usage",
  OPERATION: "serve open proxy top describe doctor gc events store",
  "SET-UP": "init smoke config trust deploy explain autocomplete version help",
};

export const GROUPS = Object.entries(LISTED).map(([title, names]) => ({ title, commands: names.split(" ") }));
