import { stripVTControlCharacters } from "node:util";
import type { Command, Config } from "@oclif/core";
import { FleetError, quote, type Suggestion } from "../base/errors.js";
import { nearestOf } from "../base/values/names.js";
import { oneOf, printable, redact } from "../base/values/text.js";
import { spoken } from "./command-id.js";
import { DEFAULT_USER } from "./flags/flags.js";
import { unmarked } from "./prompt.js";

interface Described {
  message: string;
  advice: Suggestion[];
}

/** A flag as a command defines it. */
interface Definition {
  helpValue?: string | string[];
  description?: string;
  options?: readonly string[];
}

/** Turns oclif's error about a command line into a FleetError. Suggests the flag that the user probably meant. */
export function usageError(error: Error, command: typeof Command): FleetError {
  const { message, advice } = describe(error, command);
  return new FleetError("FLEET_USAGE_INVALID", message, {
    cause: error,
    suggestions: [...advice, `copilotfleet ${spoken(command.id)} --help`],
  });
}

/** Returns the error for a command line that does not begin with the name of a command. */
export function unknownCommand([topic = "", word = "-"]: readonly string[], config: Config): FleetError {
  // If the first word is a topic, such as `token`, the second word is the unknown one.
  const inTopic = config.findTopic(topic) !== undefined && !word.startsWith("-");
  const written = inTopic ? `${topic} ${word}` : topic;
  const names = config.commandIDs.map(spoken);
  const meant = spoken(written);
  const alike = names.filter((name) => name.split(" ").length === meant.split(" ").length);
  const near = nearest(meant, alike, (name) => `copilotfleet ${name}`);
  const allowed = inTopic
    ? oneOf(names.filter((name) => name.startsWith(`${topic} `)))
    : "a command such as create, send, ps or stop";
  const listed = near.length > 0 ? "" : ` Allowed: ${allowed}.`;
  return new FleetError("FLEET_USAGE_INVALID", `There is no command ${quoteSafely(written)}.${listed}`, {
    suggestions: [...near, inTopic ? `copilotfleet ${topic} --help` : "copilotfleet --help # lists all commands"],
  });
}

/** Turns oclif's message into ours. Redacts the values that it quotes, because a user may have typed a token. */
function describe(error: Error, command: typeof Command): Described {
  // On a terminal, oclif's messages have colours.
  const text = stripVTControlCharacters(error.message);
  const known: Readonly<Record<string, Definition>> = { ...command.flags, ...command.baseFlags };
  if ("flags" in error) return unknownFlags(textsOf(error.flags), command, known);
  if (text.startsWith("Unexpected argument") && "args" in error)
    return unexpected(textsOf(error.args), "user" in known && !deletes(spoken(command.id)) && !hasUser(error));
  if (/^Missing \d+ required arg/.test(text) && "args" in error) {
    const missing = (error.args as { name: string }[]).map(({ name }) => name.toUpperCase());
    return {
      message: `${missing.join(" and ")} ${missing.length === 1 ? "is" : "are"} missing.`,
      advice: example(command),
    };
  }
  const [, required] = /^\s*Missing required flag (\S+)$/m.exec(text) ?? [];
  if (required !== undefined)
    return { message: `--${required} is missing.`, advice: required === "user" ? [DEFAULT_USER] : example(command) };
  const [, valueless] = /^Flag --(\S+) expects /.exec(text) ?? [];
  if (valueless !== undefined) {
    const { options, helpValue = "VALUE", description = "" } = known[valueless] ?? {};
    const allowed = options === undefined ? `${helpValue}, ${description}` : oneOf(options);
    const message = `--${valueless} needs a value. Allowed: ${allowed}.`;
    return { message, advice: [`Write --${valueless} ${options?.[0] ?? helpValue}.`] };
  }
  const [, flag, value = "", list = ""] = /^Expected (?:--(\S+?)=)?(.*) to be one of: (.+?)\n/s.exec(text) ?? [];
  if (list !== "") return wrongChoice(flag, value, list.split(", "), command);
  const [, one, other] = /(--[\w-]+)(?:=.*)? cannot also be provided when using (--[\w-]+)/.exec(text) ?? [];
  if (one !== undefined)
    return { message: `${one} and ${other} cannot be used together.`, advice: [`Leave out ${one} or ${other}.`] };
  const [, needing, needed] = /All of the following must be provided when using (--\S+): (.+)$/m.exec(text) ?? [];
  if (needing !== undefined)
    return { message: `${needing} needs ${needed}.`, advice: [`Add ${needed}, or leave out ${needing}.`] };
  const [, either] = /Exactly one of the following must be provided: (.+)$/m.exec(text) ?? [];
  if (either !== undefined) return { message: `${either.replace(", ", " or ")} is missing.`, advice: example(command) };
  const [, repeated] = /^Flag (--\S+) can only be specified once$/.exec(text) ?? [];
  if (repeated !== undefined) return { message: `${repeated} was given more than once. Give it once.`, advice: [] };
  const lines = text.split("\n").filter((line) => !/^(See more help with --help|USAGE)/.test(line.trim()));
  return { message: printable(redact(lines.join(" ").replace(/\s+/g, " ").trim())), advice: [] };
}

function unknownFlags(given: readonly string[], { args }: typeof Command, known: object): Described {
  const flags = given.map((flag) => flag.replace(/=.*$/s, "")); // without their values
  const names = [...new Set([...Object.keys(known), "json", "help"])].map((name) => `--${name}`);
  const meant = flags.flatMap((flag) => nearest(flag, names, (name) => `Did you mean ${name}?`));
  const listed = meant.length > 0 ? "" : ` Allowed: ${oneOf(names)}.`;
  const [first = ""] = flags;
  return {
    message: `There is no flag ${flags.map(quoteSafely).join(", ")}.${listed}`,
    advice: [
      ...meant,
      ...("text" in args ? [`If ${quoteSafely(first)} is the prompt, put -- before it.` as const] : []),
    ],
  };
}

function unexpected(words: readonly string[], mayBeUser: boolean): Described {
  const [word = ""] = words;
  const listed = words.map(quoteSafely).join(", ");
  const isUser = mayBeUser && words.length === 1 && !redact(word).includes("***");
  return {
    message: `Unexpected argument: ${listed}.`,
    advice: [
      isUser
        ? `Did you mean --user ${quoteSafely(word)}?`
        : `Leave out ${listed}, or put a text with spaces in quotes.`,
    ],
  };
}

function wrongChoice(
  flag: string | undefined,
  value: string,
  options: readonly string[],
  { id, args }: typeof Command,
): Described {
  const [argument = ""] = Object.entries(args).find(([, arg]) => arg.options?.[0] === options[0]) ?? [];
  const name = flag === undefined ? argument.toUpperCase() : `--${flag}`;
  return {
    message: `${name} is ${quoteSafely(value)}. Allowed: ${oneOf(options)}`,
    advice: [
      flag === undefined ? `copilotfleet ${spoken(id)} ${options[0]}` : `For example, write --${flag} ${options[0]}.`,
    ],
  };
}

/** The command's first example that is one plain command. */
function example({ examples = [] }: typeof Command): Suggestion[] {
  const plain = examples.find(
    (each): each is string => typeof each === "string" && /^<%= config.bin %> [^|>]+$/.test(each),
  );
  return plain === undefined ? [] : [`copilotfleet ${plain.slice("<%= config.bin %> ".length)}`];
}

/** Whether the user typed `--user`. */
function hasUser(error: Error): boolean {
  const { raw = [] } = (error as { parse?: { output?: { raw?: readonly { flag?: string }[] } } }).parse?.output ?? {};
  return raw.some(({ flag }) => flag === "user");
}

function quoteSafely(value: string): string {
  return quote(redact(unmarked(value)));
}

function textsOf(value: unknown): string[] {
  return Array.isArray(value) ? value.map(String) : [];
}

/**
 * Whether the command deletes something that no other command can restore. Such a command is never suggested for a
 * mistyped name. It is not suggested with `--user` either: a user who typed "gc alice" may not want to delete alice's
 * sessions.
 */
function deletes(name: string): boolean {
  return /^(?:rm|delete|gc|token revoke)$/.test(name);
}

/** Suggests the most similar name or, if all differ too much, a name that begins with `written` and a hyphen. */
function nearest(written: string, known: readonly string[], phrase: (name: string) => Suggestion): Suggestion[] {
  const harmless = known.filter((name) => !deletes(name));
  const [near = harmless.find((name) => name.startsWith(`${written}-`))] = nearestOf(written, harmless, (name) => name);
  return near === undefined ? [] : [phrase(near)];
}
