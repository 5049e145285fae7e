import type { Command, Config } from "@oclif/core";
import { spoken } from "../command-id.js";
import { colour } from "../render/colour.js";
import { renderShellLine, renderTerms, renderUsage, type Term, wrap } from "./layout.js";

type Flag = Command.Flag.Cached;

/** The flags that all commands share. Help lists them last, and leaves them out of USAGE. */
const EVERYWHERE = ["config", "json", "no-color", "help", "version"];

/** The description of `--json`. It replaces oclif's own description. */
const JSON_TEXT = "print the result or the error as JSON";
const HELP: Flag = { name: "help", char: "h", type: "boolean", description: "show this help", allowNo: false };

/** Renders the help of one command. */
export function renderCommandHelp(command: Command.Loadable, config: Config, width: number): string {
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
