import type { Command, Config } from "@oclif/core";
import { keysBelow, keyTree } from "../../config/keys.js";
import { ERRORS } from "../../errors/table.js";
import type { IdKind } from "../../fleet/recorded-ids.js";
import { commandOf, topicOf } from "../command-id.js";

export interface Candidate {
  value: string;
  description: string | null;
}

/** The kinds of words that a user may type at the cursor. */
export interface Place {
  /** Candidates that do not depend on the fleet. */
  fixed: Candidate[];
  /** The kinds of ids that may be typed here. */
  ids: readonly IdKind[];
  /** Whether the name of a file or folder may be typed here. */
  files: boolean;
  /** The part of the word before the value, such as `--user=`; empty if the word is only the value. */
  prefix: string;
  /** The value of `--user` on the line. */
  user?: string | undefined;
  /** The value of `--config` on the line. */
  configFile?: string | undefined;
}

type Flag = Command.Flag.Cached;
type Values = Partial<Pick<Place, "fixed" | "ids" | "files">>;

const FLAG_IDS: Readonly<Record<string, readonly IdKind[]>> = {
  user: ["user"],
  member: ["user"],
  host: ["host"],
  model: ["model"],
  session: ["session"],
};

const ARGUMENT_IDS: Readonly<Record<string, readonly IdKind[]>> = {
  server: ["server"],
  session: ["session"],
  token: ["token"],
  name: ["server", "session", "user"],
};

/** Finds the kinds of words that may be typed at the cursor, which is at the end of the last word. */
export function placeAt(words: readonly string[], config: Config): Place {
  const before = words.slice(0, -1);
  const current = words.at(-1) ?? "";
  const named = commandOf(before, config);
  const command = config.findCommand(named?.id ?? "");
  if (named === undefined || command === undefined) return placeOf({ fixed: firstWords(before, current, config) });
  const typed = read(named.rest, command);
  const rest = { user: typed.values.get("user"), configFile: typed.values.get("config") };
  if (typed.open !== undefined) return placeOf(valuesOfFlag(typed.open), rest);
  const [, start, name = ""] = (typed.isClosed ? null : /^(--([^=]+)=)/.exec(current)) ?? [];
  if (start !== undefined) {
    const flag = flagNamed(name, command);
    return placeOf(flag === undefined ? {} : valuesOfFlag(flag), { ...rest, prefix: start });
  }
  const flags = { fixed: flagsOf(command, typed.used) };
  if (current.startsWith("-") && !typed.isClosed) return placeOf(flags, rest);
  const argument = argumentAt(typed.count, command);
  if (argument !== undefined) return placeOf(valuesOfArgument(argument, named.rest, config), rest);
  // The command line of any program may follow `--`, so offer the names of files.
  return placeOf(typed.isClosed ? { files: true } : flags, rest);
}

function placeOf({ fixed = [], ids = [], files = false }: Values, rest: Partial<Place> = {}): Place {
  return { fixed, ids, files, prefix: "", ...rest };
}

/** The words between the name of the command and the word at the cursor, parsed. */
interface Typed {
  used: Set<string>;
  values: Map<string, string>;
  /** The number of positional arguments. */
  count: number;
  /** The flag whose value comes next; undefined if the last word needs no value. */
  open: Flag | undefined;
  /** Whether there was a `--`, after which nothing is a flag. */
  isClosed: boolean;
}

function read(words: readonly string[], command: Command.Loadable): Typed {
  const typed: Typed = { used: new Set(), values: new Map(), count: 0, open: undefined, isClosed: false };
  for (const word of words) {
    if (typed.open !== undefined) {
      typed.values.set(typed.open.name, word);
      typed.open = undefined;
    } else if (typed.isClosed || !word.startsWith("-") || word === "-") typed.count++;
    else if (word === "--") typed.isClosed = true;
    else readFlag(word, command, typed);
  }
  return typed;
}

function readFlag(word: string, command: Command.Loadable, typed: Typed): void {
  const [, name = "", value] = /^--([^=]+)(?:=(.*))?$/s.exec(word) ?? [];
  const flag = flagNamed(name, command) ?? Object.values(command.flags).find(({ char }) => char === word[1]);
  if (flag === undefined) return;
  typed.used.add(flag.name);
  if (value !== undefined) typed.values.set(flag.name, value);
  else if (flag.type === "option" && (name !== "" || word.length === 2)) typed.open = flag;
}

function flagNamed(name: string, { flags }: Command.Loadable): Flag | undefined {
  return Object.values(flags).find((flag) => flag.name === name);
}

function flagsOf({ flags }: Command.Loadable, used: ReadonlySet<string>): Candidate[] {
  const free = Object.values(flags).filter((flag) => !used.has(flag.name) || (flag.type === "option" && flag.multiple));
  return [
    ...free.map(({ name, description = "" }) => ({ value: `--${name}`, description })),
    { value: "--help", description: "show flags and examples" },
  ];
}

function valuesOfFlag(flag: Flag): Values {
  if (flag.type !== "option") return {};
  if (flag.options !== undefined) return { fixed: plain(flag.options) };
  if (flag.helpValue === "VAR") return { fixed: plain(Object.keys(process.env)) };
  if (["FILE", "DIR", "PATH"].includes(String(flag.helpValue))) return { files: true };
  return { ids: FLAG_IDS[flag.name] ?? [] };
}

function argumentAt(index: number, { args, strict }: Command.Loadable): Command.Arg.Cached | undefined {
  const all = Object.values(args);
  return all[index] ?? (strict === false ? all.at(-1) : undefined);
}

function valuesOfArgument(argument: Command.Arg.Cached, words: readonly string[], config: Config): Values {
  const { name, options } = argument;
  if (options !== undefined) return { fixed: plain(options) };
  if (name === "command") return { fixed: firstWords(words, "", config) };
  if (name === "key") return { fixed: plain([...keysBelow(keyTree())].map((key) => key.name)) };
  if (name === "code") return { fixed: plain(Object.keys(ERRORS)) };
  return name === "path" ? { files: true } : { ids: ARGUMENT_IDS[name] ?? [] };
}

/** The words that may come next in the name of a command that begins with the words before the cursor. */
function firstWords(before: readonly string[], current: string, config: Config): Candidate[] {
  if (before.length === 0 && current.startsWith("-")) return plain(["--help", "--version"]);
  const found = new Map<string, string | null>();
  for (const { id, summary = null } of config.commands) {
    const words = id.split(":");
    const next = words[before.length];
    if (next === undefined || before.some((word, at) => word !== words[at])) continue;
    const topic = words.length > before.length + 1 ? topicOf(next, config) : undefined;
    found.set(next, topic === undefined ? summary : (topic.description ?? null));
  }
  return Array.from(found, ([value, description]) => ({ value, description }));
}

function plain(values: readonly string[]): Candidate[] {
  return values.map((value) => ({ value, description: null }));
}
