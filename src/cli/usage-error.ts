import { stripVTControlCharacters } from "node:util";
import type { Command, Config, Interfaces } from "@oclif/core";
import { FleetError, isFleetError, quote, type Suggestion } from "../base/errors.js";
import { nearestOf } from "../base/values/names.js";
import { printable, redact } from "../base/values/text.js";
import { meantArguments, spoken, typedIn } from "./command-id.js";
import { DEFAULT_USER } from "./flags/flags.js";
import { unmarked } from "./prompt.js";

/** Turns oclif's error about a command line into a FleetError. Suggests the flag that the user probably meant. */
export async function usageError(error: Error, command: typeof Command): Promise<FleetError> {
  // On a terminal, oclif's messages have colours, which the patterns in this file do not expect.
  error.message = stripVTControlCharacters(error.message);
  const unknown = "flags" in error ? flagNames(error.flags) : [];
  const known = { ...command.baseFlags, ...command.flags };
  // First list the command's own flags, then the flags that every command has.
  const names = [...Object.keys(command.flags ?? {}), ...Object.keys(command.baseFlags ?? {}), "json", "help"];
  const flags = [...new Set(names)].map((name) => `--${name}`);
  const [word, ...words] = unexpectedOf(error);
  const typed = typedIn(error);
  const isMissing = error.message.startsWith("Missing");
  const isMisplaced = word !== undefined || isMissing;
  const meantLines = isMisplaced ? meantArguments(spoken(command.id), { ...typed, isMissing }) : [];
  const lacksUser = "user" in known && !typed.flags.has("user") && meantLines.length === 0;
  const isUser =
    !deletes(spoken(command.id)) &&
    word !== undefined &&
    words.length === 0 &&
    lacksUser &&
    !redact(word).includes("***");
  const [, valueless] = /^Flag (--\S+) expects /.exec(error.message) ?? [];
  const { message, advice } =
    valueless === undefined
      ? { message: describe(error, known, command), advice: exampleOf(error, command) }
      : await missingValue(valueless, known[valueless.slice("--".length)]);
  const meantFlags = unknown.flatMap((flag) => nearest(flag, flags, (name) => `Did you mean ${name}?`));
  const listed = unknown.length > 0 && meantFlags.length === 0 ? allowedOf(flags) : "";
  const takesNone = word !== undefined && Object.keys(command.args ?? {}).length === 0;
  return new FleetError("FLEET_USAGE_INVALID", takesNone ? refuseArguments(command, error) : `${message}${listed}`, {
    cause: error,
    suggestions: [
      ...advice,
      ...meantLines,
      ...(isUser ? [`Did you mean --user ${quoteSafely(word)}?` as const] : []),
      ...(takesNone && !isUser ? plainCommand(command) : []),
      ...meantFlags,
      ...unknown
        .slice(0, "text" in command.args ? 1 : 0)
        .map((flag): Suggestion => `If ${quoteSafely(flag)} is the prompt, put -- before it.`),
      ...(missingFlag(error) === "user" ? [DEFAULT_USER] : []),
      `copilotfleet ${spoken(command.id)} --help`,
    ],
  });
}

/** Returns the error for a command line that does not begin with the name of a command. */
export function unknownCommand(args: readonly string[], config: Config): FleetError {
  const [topic = "", word] = args;
  // If the first word is a topic, such as `token`, the second word is the unknown one.
  const inTopic = config.findTopic(topic) !== undefined && word !== undefined && !word.startsWith("-");
  const written = inTopic ? `${topic} ${word}` : topic;
  const near = nearest(written, namesLike(written, config), (name) => `copilotfleet ${name}`);
  const spaced = config.findCommand(topic) !== undefined && topic.includes(":") ? [spoken(topic)] : [];
  const others = inTopic && near.length === 0 ? commandsIn(topic, config) : [];
  const only = [...spaced, ...others.filter((_, __, { length }) => length === 1)];
  const listed = others.length > 0 && others.length <= MOST_COMMANDS ? allowedOf(others) : "";
  const meantCommands = [...near, ...only.map((name): Suggestion => `copilotfleet ${name}`)];
  const usual = inTopic || meantCommands.length > 0 ? "" : ` ${USUAL_COMMANDS}`;
  return new FleetError("FLEET_USAGE_INVALID", `${noCommand(written)}${listed}${usual}`, {
    suggestions: [
      ...meantCommands,
      inTopic ? `copilotfleet ${topic} --help` : "copilotfleet --help # lists all commands",
    ],
  });
}

const USUAL_COMMANDS = "Allowed: a command such as create, send, ps or stop.";

/** States why a word is not a command. */
function noCommand(word: string): string {
  if (word === "") return 'The command "" is empty.';
  if (word.startsWith("-")) return `The command is missing before the flag ${quoteSafely(word)}.`;
  return `There is no command ${quoteSafely(word)}.`;
}

/** The commands whose names begin with a topic, such as `token`. */
function commandsIn(topic: string, config: Config): string[] {
  return config.commandIDs.map(spoken).filter((name) => name.startsWith(`${topic} `));
}

/** The most commands that an error lists. */
const MOST_COMMANDS = 8;

/** States the allowed words. */
function allowedOf(words: readonly string[]): string {
  return ` Allowed: ${oneOf(words.join(", "))}.`;
}

/** The commands whose names have as many words as `written`. */
function namesLike(written: string, config: Config): string[] {
  const count = written.split(" ").length;
  return config.commandIDs.map(spoken).filter((name) => name.split(" ").length === count);
}

/** Turns oclif's message into ours. Redacts the values that it quotes, because a user may have typed a token. */
function describe(error: Error, known: Readonly<Record<string, object>>, { args }: typeof Command): string {
  const given = "args" in error ? error.args : [];
  if (/^Missing \d+ required arg/.test(error.message)) {
    const missing = Array.isArray(given) ? given.map(({ name }: { name: string }) => name.toUpperCase()) : [];
    return `${missing.join(" and ")} ${missing.length === 1 ? "is" : "are"} missing.`;
  }
  const unexpected = unexpectedOf(error);
  if (unexpected.length > 0) return `Unexpected argument: ${unexpected.map(quoteSafely).join(", ")}.`;
  if ("flags" in error) return `There is no flag ${flagNames(error.flags).map(quoteSafely).join(", ")}.`;
  const [, flag, value = "", allowed] = /^Expected (--\S+?)=(.*) to be one of: (.+?)\n/s.exec(error.message) ?? [];
  if (flag !== undefined) {
    const { kind = "value" }: { kind?: string } = known[flag.slice(2)] ?? {};
    return `${flag} ${quoteSafely(value)} is not ${/^[aeiou]/.test(kind) ? "an" : "a"} ${kind}. Allowed: ${oneOf(allowed ?? "")}.`;
  }
  const [, word = "", words] = /^Expected (.*) to be one of: (.+?)\n/s.exec(error.message) ?? [];
  if (words !== undefined) {
    const [name = "the argument"] = Object.entries(args).find(([, { options }]) => options?.join(", ") === words) ?? [];
    return `${name.toUpperCase()} is ${quoteSafely(word)}. Allowed: ${oneOf(words)}.`;
  }
  const [, needing, needed] =
    /All of the following must be provided when using (--\S+): (.+)$/m.exec(error.message) ?? [];
  if (needing !== undefined) return `${needing} needs ${needed}.`;
  const [, repeated] = /^Flag (--\S+) can only be specified once$/.exec(error.message) ?? [];
  if (repeated !== undefined) return `${repeated} was given more than once. Give it once.`;
  const required = missingFlag(error);
  if (required !== undefined) return `--${required} is missing.`;
  const lines = error.message.split("\n").filter((line) => !/^(See more help with --help|USAGE)/.test(line.trim()));
  return printable(redact(lines.join(" ").replace(/\s+/g, " ").trim()));
}

/** Suggests the first allowed value, if the error is about a flag or an argument with a fixed list of values. */
function exampleOf({ message }: Error, { id }: typeof Command): Suggestion[] {
  const [, flag, example] = /^Expected (--\S+?=)?.* to be one of: ([^,\n]+)/s.exec(message) ?? [];
  if (example === undefined) return [];
  return [
    flag === undefined
      ? `copilotfleet ${spoken(id)} ${example}`
      : `For example, write ${flag.slice(0, -1)} ${example}.`,
  ];
}

function refuseArguments({ id }: typeof Command, error: Error): string {
  return `"${spoken(id)}" takes no arguments, but was given ${unexpectedOf(error).map(quoteSafely).join(", ")}.`;
}

/** Suggests the command without arguments, and with `--dry-run` if it has this flag. */
function plainCommand({ id, flags }: { id: string; flags?: object }): Suggestion[] {
  const name = spoken(id);
  if (name === "store migrate") return ["copilotfleet store migrate --to redis://HOST:6379/0"];
  return name === "drain" ? [] : [`copilotfleet ${name}${"dry-run" in (flags ?? {}) ? " --dry-run" : ""}`];
}

/** Turns "a, b, c" into "a, b or c". */
function oneOf(values: string): string {
  return values.replace(/, (?=[^,]*$)/, " or ");
}

/** The name of the required flag that the user did not give. */
function missingFlag({ message }: Error): string | undefined {
  return /^\s*Missing required flag (\S+)$/m.exec(message)?.[1];
}

function unexpectedOf(error: Error): string[] {
  return "args" in error && error.message.startsWith("Unexpected argument") ? textsOf(error.args) : [];
}

function quoteSafely(value: string): string {
  return quote(redact(unmarked(value)));
}

/** The flags as the user wrote them, without their values. */
function flagNames(flags: unknown): string[] {
  return textsOf(flags).map((flag) => flag.replace(/=.*$/s, ""));
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

/** A flag as a command defines it. */
type Definition = Partial<Pick<Interfaces.OptionFlag<unknown>, "helpValue" | "options">> & {
  parse?: unknown;
  /** A usual value. */
  example?: string;
};

/** The allowed values of flags that accept any text, by the `helpValue` of the flag. */
const KINDS: Readonly<Record<string, string>> = {
  DIR: "the path of a folder, such as ./deploy",
  FILE: "the path of a new file, such as ./session.tar.gz",
  HOST: 'the name of a host, such as "host-1" ("copilotfleet ps --output wide" shows the names)',
  MODEL: "the name of a model, such as gpt-5",
  PATH: "the path of a file, such as ./.copilotfleet.json",
  STORE: 'the store "file", or the URL of a Redis, such as redis://127.0.0.1:6379/0',
  TEXT: 'a text, in quotes if it has spaces, such as "review"',
  TOKEN: 'the token that "copilotfleet lock" printed',
  USER: "the id of a user, such as alice",
  URL: "a URL, such as https://api.openai.com/v1",
  VAR: "the name of an environment variable",
};

/** The allowed values of particular flags. They take precedence over {@link KINDS}. */
const FILES: Readonly<Record<string, string>> = {
  "--config": "the path of a configuration file, such as ./.copilotfleet.json",
  "--token-file": "the path of a file that only you can read, such as ./token",
  "--ca-key": "the path of a file that only you can read, such as ./fleet-ca.pem",
  "--ca": "the path of a file with certificates, such as ./ca.crt",
  "--cert": "the path of a file with a certificate, such as ./client.crt",
  "--key": "the path of a file that only you can read, such as ./client.key",
  "--listen": "an address of this machine, such as 127.0.0.1:4300",
  "--http": "an address of this machine, such as 127.0.0.1:4380",
  "--metrics": "an address of this machine, such as 127.0.0.1:9464",
};

/**
 * Returns the message and the advice for a flag that was given without a value. They name the same allowed values as
 * the error for a wrong value.
 */
export async function missingValue(
  flag: string,
  definition: Definition = {},
): Promise<{ message: string; advice: Suggestion[] }> {
  const options = definition.options?.join(", ").replace(/, (?=[^,]*$)/, " or ");
  const found = options === undefined ? await refusedBy(flag, definition) : { allowed: options, advice: "" };
  const { example: usual } = definition;
  const allowed = usual === undefined ? found.allowed : `${found.allowed}, such as ${usual}`;
  const message = `${flag} needs a value.${allowed === "" ? "" : ` Allowed: ${allowed}`}`;
  const [, advised] = /(?:such as|write) (?:--\S+ )?"?([^\s"]+?)"?\.$/.exec(found.advice) ?? [];
  const example = usual ?? advised ?? exampleIn(allowed);
  const { helpValue = "VALUE" } = definition;
  return {
    message,
    advice: [example === undefined ? `Write ${flag} ${helpValue}.` : `For example, write ${flag} ${example}.`],
  };
}

/** Reads the allowed values from the error with which the flag refuses an empty value, or else from FILES or KINDS. */
async function refusedBy(
  flag: string,
  { parse, helpValue = "" }: Definition,
): Promise<{ allowed: string; advice: string }> {
  try {
    if (typeof parse === "function") await parse("", {}, {});
  } catch (error) {
    if (!isFleetError(error)) throw error;
    const { message, suggestions } = error.describe((name) => name);
    const [, allowed] = /\bAllowed: (.+?)\.?$/s.exec(message) ?? [];
    if (allowed !== undefined) return { allowed, advice: suggestions[0] ?? "" };
  }
  return { allowed: FILES[flag] ?? KINDS[String(helpValue)] ?? "", advice: "" };
}

/** Finds an allowed value in the text after "Allowed:"; undefined if the text names none. */
function exampleIn(allowed: string): string | undefined {
  const [, named] = /such as "?([^\s",]+)/.exec(allowed) ?? [];
  if (named !== undefined) return named.replace(/[.)]+$/, "");
  const [, least] = /from (\d+) to/.exec(allowed) ?? [];
  if (least !== undefined) return String(Math.max(Number(least), 1));
  return /^([\w-]+)(?:, | or )/.exec(allowed)?.[1];
}
