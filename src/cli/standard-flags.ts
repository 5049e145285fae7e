import type { Command, Config } from "@oclif/core";
import { commandOf, spoken, topicOf } from "./command-id.js";

interface Words {
  id: string;
  rest: string[];
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
