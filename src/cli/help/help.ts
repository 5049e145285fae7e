import type { Command, Config } from "@oclif/core";
import { errorGroups } from "../../errors/explanation.js";
import { commandOf, ownCommands, spoken, topicOf } from "../command-id.js";
import { colour } from "../render/colour.js";
import { terminalWidth } from "../render/table.js";
import { unknownCommand } from "../usage-error.js";
import { renderCommandHelp } from "./command-help.js";
import { GROUPS } from "./groups.js";
import { renderTerms, type Term, wrap } from "./layout.js";

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
  if (words.length === 0) return renderRoot(config, width);
  const command = config.findCommand(commandOf(words, config)?.id ?? "");
  if (command !== undefined) return renderCommandHelp(command, config, width);
  const topic = words.length === 1 ? topicOf(words[0] ?? "", config) : undefined;
  if (topic === undefined) throw unknownCommand(words, config);
  const commands = ownCommands(config).filter(({ id }) => id.startsWith(`${topic.name}:`));
  return [
    ...wrap(topic.description ?? "", width),
    "",
    colour.bold("USAGE"),
    `  ${config.bin} ${topic.name} COMMAND`,
    "",
    colour.bold("COMMANDS"),
    ...renderTerms(commands.map(termOf), width),
  ].join("\n");
}

function widthOfHelp(): number {
  const width = terminalWidth();
  return Number.isFinite(width) ? Math.min(width, WIDEST) : PLAIN_WIDTH;
}

function renderRoot(config: Config, width: number): string {
  const names = new Map(
    ownCommands(config).map((command): [string, Term] => {
      const topic = topicOf(command.id.split(":")[0] ?? "", config);
      if (topic === undefined) return [command.id, termOf(command)];
      return [topic.name, { term: topic.name, text: topic.description ?? "" }];
    }),
  );
  const grouped = new Set(GROUPS.flatMap(({ commands }) => commands));
  const others = [...names.keys()].filter((id) => !grouped.has(id));
  const groups = others.length === 0 ? GROUPS : [...GROUPS, { title: "OTHER COMMANDS", commands: others }];
  const exits = errorGroups().map(({ exit, title }) => `${exit} ${title[0]?.toLowerCase()}${title.slice(1)}`);
  const { description = "", homepage } = config.pjson;
  return [
    ...wrap(`${description}.`, width),
    "",
    colour.bold("USAGE"),
    `  ${config.bin} COMMAND [ARGUMENTS] [FLAGS]`,
    ...groups.flatMap(({ title, commands }) => {
      const terms = commands.flatMap((name) => names.get(name) ?? []);
      return ["", colour.bold(title), ...renderTerms(terms, width)];
    }),
    "",
    colour.bold("EXIT CODES"),
    ...wrap(`0 done; ${exits.join("; ")}; 130 and 143 ended by a signal`, width - 2).map((line) => `  ${line}`),
    "",
    colour.bold("MORE"),
    ...renderTerms(
      [
        { term: `${config.bin} help COMMAND`, text: "flags and examples of a command" },
        { term: `${config.bin} explain CODE`, text: "meaning of an error code" },
      ],
      width,
    ),
    ...(isRealAddress(homepage) ? ["  Documentation:", `    ${homepage}`] : []),
  ].join("\n");
}

/** Whether package.json names a real address. Before the first release, it has a placeholder in capital letters. */
function isRealAddress(homepage: unknown): homepage is string {
  return typeof homepage === "string" && !/REPLACE/.test(homepage);
}

function termOf({ id, summary = "" }: Command.Loadable): Term {
  return { term: spoken(id), text: summary };
}
