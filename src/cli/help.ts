import type { Command, Config } from "@oclif/core";
import stringWidth from "string-width";
import { errorGroups } from "../base/errors/explanation.js";
import { commandOf, ownCommands, spoken, topicOf } from "./command-id.js";
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

type Flag = Command.Flag.Cached;

/** The flags that all commands share. Help lists them last, and leaves them out of USAGE. */
const EVERYWHERE = ["config", "json", "no-color", "help", "version"];

/** The description of `--json`. It replaces oclif's own description. */
const JSON_TEXT = "print the result or the error as JSON";
const HELP: Flag = { name: "help", char: "h", type: "boolean", description: "show this help", allowNo: false };

/** Renders the help of one command. */
function renderCommandHelp(command: Command.Loadable, config: Config, width: number): string {
  const { summary = "", description, examples = [], args } = command;
  const flags: Readonly<Record<string, Flag>> = { ...command.flags, help: HELP };
  const own = Object.values(flags).filter(({ name, hidden }) => !hidden && !EVERYWHERE.includes(name));
  const global = EVERYWHERE.flatMap((name) => flags[name] ?? []);
  const names = [...new Set(own.map(({ helpGroup }) => helpGroup))];
  const section = (title: string, lines: readonly string[]) =>
    lines.length === 0 ? [] : ["", colour.bold(title), ...lines];
  return [
    ...wrap(summary, width),
    ...section(
      "USAGE",
      usagesOf(command, own).flatMap((usage) => renderUsage(`${config.bin} ${usage}`, width)),
    ),
    ...(description === undefined ? [] : ["", ...wrap(description, width)]),
    ...section(
      "ARGUMENTS",
      renderTerms(
        Object.values(args)
          .filter(({ hidden }) => !hidden)
          .map(termOfArg),
        width,
      ),
    ),
    ...names.flatMap((group) => {
      const members = own.filter(({ helpGroup }) => helpGroup === group);
      return section(group === undefined ? "FLAGS" : `${group} FLAGS`, renderTerms(members.map(termOfFlag), width));
    }),
    ...section("GLOBAL FLAGS", renderTerms(global.map(termOfFlag), width)),
    ...section("ALIASES", command.aliases.length === 0 ? [] : [`  ${command.aliases.map(spoken).join(", ")}`]),
    ...section(
      "EXAMPLES",
      examples.flatMap((example) => {
        const text = typeof example === "string" ? example : example.command;
        return renderShellLine(text.replaceAll("<%= config.bin %>", config.bin), width);
      }),
    ),
  ].join("\n");
}

function usagesOf(command: Command.Loadable, flags: readonly Flag[]): string[] {
  const { usage } = command;
  if (usage !== undefined) return [usage].flat();
  const args = Object.values(command.args)
    .filter(({ hidden }) => !hidden)
    .map((arg, at, all) => {
      const name = `${arg.name.toUpperCase()}${!command.strict && at === all.length - 1 ? "…" : ""}`;
      return arg.required ? name : `[${name}]`;
    });
  const needed = flags.filter(({ required }) => required).map((flag) => `--${flag.name} ${valueName(flag)}`);
  const rest = flags.some(({ required }) => !required) ? ["[FLAGS]"] : [];
  return [[spoken(command.id), ...args, ...needed, ...rest].join(" ")];
}

function termOfArg({ name, description = "", options }: Command.Arg.Cached): Term {
  return { term: name.toUpperCase(), text: `${description}${inBrackets([choices(options)])}` };
}

function termOfFlag(flag: Flag): Term {
  const { name, char, description = "", options, required, default: value } = flag as Flag & { options?: string[] };
  const hasDefault = typeof value === "string" || typeof value === "number";
  const notes = [required ? "required" : "", choices(options), hasDefault ? `default: ${value}` : ""];
  const short = char === undefined ? "    " : `-${char}, `;
  return {
    term: [`${short}--${name}`, valueName(flag)].join(" ").trimEnd(),
    text: `${name === "json" ? JSON_TEXT : description}${inBrackets(notes)}`,
  };
}

function valueName(flag: Flag): string {
  if (flag.type === "boolean") return "";
  const { helpValue = "VALUE", multiple } = flag;
  return `${[helpValue].flat().join("|")}${multiple ? "…" : ""}`;
}

function choices(options: readonly string[] | undefined): string {
  return options === undefined ? "" : options.join(", ").replace(/, (?=[^,]*$)/, " or ");
}

function inBrackets(notes: readonly string[]): string {
  const some = notes.filter((note) => note !== "");
  return some.length === 0 ? "" : ` (${some.join("; ")})`;
}

/** The commands in the order in which help lists them. The name of a topic stands for all its commands. */
export const GROUPS: readonly { title: string; commands: readonly string[] }[] = [
  { title: "SERVERS", commands: ["spawn", "ps", "logs", "stop", "restart", "drain", "route", "connect"] },
  {
    title: "SESSIONS",
    commands: [
      "create",
      "send",
      "chat",
      "resume",
      "list",
      "transcript",
      "delete",
      "export",
      "import",
      "evict",
      "lock",
      "unlock",
    ],
  },
  { title: "USERS", commands: ["user", "token", "limit", "usage"] },
  {
    title: "OPERATION",
    commands: ["serve", "open", "proxy", "top", "describe", "doctor", "gc", "events", "store"],
  },
  {
    title: "SET-UP",
    commands: ["init", "smoke", "config", "trust", "deploy", "explain", "autocomplete", "version", "help"],
  },
];

/** Takes the place of a space at which a line must not break. */
const FIXED_SPACE = "\u00a0";

/** Wraps text at spaces. Never breaks a word, even if it is longer than a line, because a user may want to copy it. */
function wrap(text: string, width: number): string[] {
  return text.split("\n").flatMap((paragraph) => {
    const lines: string[] = [];
    for (const word of paragraph.split(" ")) {
      const line = lines.at(-1);
      if (line !== undefined && stringWidth(line) + 1 + stringWidth(word) <= width)
        lines[lines.length - 1] = `${line} ${word}`;
      else lines.push(word);
    }
    return lines;
  });
}

interface Term {
  /** May contain escape codes for colours. */
  term: string;
  text: string;
}

/**
 * Renders terms with their explanations beside them. If a term is too long for its column, its explanation begins on
 * the next line.
 */
function renderTerms(terms: readonly Term[], width: number): string[] {
  const most = Math.floor(width * 0.4);
  const widths = terms.map(({ term }) => stringWidth(term)).filter((each) => each <= most);
  const column = Math.max(0, ...widths);
  return terms.flatMap(({ term, text }) => {
    const lines = wrap(text, width - column - 4).map((line) => `${" ".repeat(column + 4)}${line}`.trimEnd());
    const own = stringWidth(term);
    if (own > column || text === "") return [`  ${term}`, ...(text === "" ? [] : lines)];
    const [first = "", ...rest] = lines;
    return [`  ${term}${" ".repeat(column - own + 2)}${first.trimStart()}`, ...rest];
  });
}

/** Renders a usage line. Never breaks it between a flag and its value, or inside brackets. */
function renderUsage(usage: string, width: number): string[] {
  return indent(wrap(unbroken(usage, /\[[^\]]*\]/g), width - 4));
}

/** Renders a line for a shell. A long line is broken so that it can still be pasted. */
function renderShellLine(line: string, width: number): string[] {
  // The indent takes up to 4 columns, and the space with the backslash takes 2.
  const lines = wrap(unbroken(line, /"[^"]*"|'[^']*'/g), width - 6);
  return indent(lines.map((part, at) => (at === lines.length - 1 ? part : `${part} \\`)));
}

function unbroken(line: string, parts: RegExp): string {
  const fix = (text: string) => text.replaceAll(" ", FIXED_SPACE);
  return line.replace(parts, fix).replace(/(?<=^|\s)--?\w[\w-]* (?=[^\s-])/g, fix);
}

function indent(lines: readonly string[]): string[] {
  return lines.map((line, at) => `${at === 0 ? "  " : "    "}${line}`.replaceAll(FIXED_SPACE, " "));
}
