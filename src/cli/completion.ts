import { setTimeout as delay } from "node:timers/promises";
import type { Command, Config } from "@oclif/core";
import { ERRORS } from "../base/errors/table.js";
import { printable } from "../base/values/text.js";
import { keysBelow, keyTree } from "../config/keys.js";
import { type IdKind, recordedIds } from "../fleet/recorded-ids.js";
import { commandOf, topicOf } from "./command-id.js";

/** How long the fleet may take to list ids, in milliseconds. The shell is blocked during this time. */
const ANSWER_MS = 1_000;

/**
 * Matches text that has no special meaning in any shell. All ids match. Other candidates might not: a project's
 * configuration file may name a model `$(command)`, and the environment may contain variables with any name.
 */
const HARMLESS = /^(?:--)?[\p{L}\p{M}\p{N}_.@+:/][\p{L}\p{M}\p{N}_.@+:/-]*$/u;

interface Candidate {
  value: string;
  description: string | null;
}

/** The possible words at the cursor: fixed words, ids of these kinds, or names of files. */
interface Place {
  fixed?: Candidate[];
  ids?: readonly IdKind[];
  files?: boolean;
}

export interface Candidates {
  /** The words that the user may type at the cursor. */
  candidates: Candidate[];
  /** Whether the user may type the name of a file at the cursor. */
  files: boolean;
}

/** The kinds of ids that a flag or an argument with this name takes. */
const IDS: Readonly<Record<string, readonly IdKind[]>> = {
  user: ["user"],
  member: ["user"],
  host: ["host"],
  model: ["model"],
  server: ["server"],
  session: ["session"],
};

/**
 * Finds the candidates for the last word. Never rejects, because an error would disturb the user's prompt. `isLate`
 * means that the fleet did not answer in time. It may then keep the process alive.
 */
export async function findCandidates(
  words: readonly string[],
  config: Config,
): Promise<Candidates & { isLate: boolean }> {
  const before = words.slice(0, -1);
  const current = words.at(-1) ?? "";
  const { place, prefix = "", flags } = placeAt(before, current, config);
  const { fixed = [], ids: kinds = [], files = false } = place;
  const ids = kinds.length === 0 ? [] : await idsOf(kinds, flags);
  const given = new Set(prefix === "" ? before : []);
  const candidates = [...fixed, ...plain(ids ?? [])]
    .filter(({ value }) => HARMLESS.test(value) && (value.startsWith("--") || !given.has(value)))
    .map(({ value, description }) => ({ value: prefix + value, description: description && printable(description) }))
    .filter(({ value }) => value.startsWith(current));
  return { candidates, files, isLate: ids === null };
}

/** Lists ids. Null if the fleet does not answer in time; empty if it fails, because the command will report that. */
async function idsOf(kinds: readonly IdKind[], flags = new Map<string, string>()): Promise<string[] | null> {
  const options = { env: process.env, cwd: process.cwd(), user: flags.get("user"), configFile: flags.get("config") };
  const ids = recordedIds(kinds, options).catch(() => []);
  return await Promise.race([ids, delay(ANSWER_MS, null, { ref: false })]);
}

/** The place at the cursor, the part of the last word before the value (`--user=`), and the flags on the line. */
function placeAt(
  before: readonly string[],
  current: string,
  config: Config,
): { place: Place; prefix?: string; flags?: Map<string, string> } {
  const named = commandOf(before, config);
  const command = config.findCommand(named?.id ?? "");
  if (named === undefined || command === undefined) return { place: { fixed: commandWords(before, current, config) } };
  if (command.id === "help") return { place: { fixed: commandWords(named.rest, "", config) } };
  const typed = readWords(named.rest, command);
  const [, prefix, name = ""] = (!typed.isClosed && /^(--([^=]+)=)/.exec(current)) || [];
  if (prefix === undefined || typed.open !== undefined) {
    return { place: placeAfter(typed, current, command), flags: typed.values };
  }
  return { place: valuesOfFlag(flagNamed(name, command)), prefix, flags: typed.values };
}

/** The words between the name of the command and the word at the cursor. */
interface Typed {
  /** The flags that the user typed, with their values. */
  values: Map<string, string>;
  /** The number of positional arguments. */
  count: number;
  /** The flag whose value comes next. */
  open: Command.Flag.Cached | undefined;
  /** Whether there was a `--`, after which nothing is a flag. */
  isClosed: boolean;
}

function readWords(words: readonly string[], command: Command.Loadable): Typed {
  const typed: Typed = { values: new Map(), count: 0, open: undefined, isClosed: false };
  for (const word of words) {
    const [, name = "", value = ""] = /^--([^=]+)=?(.*)$/s.exec(word) ?? [];
    if (typed.open !== undefined) {
      typed.values.set(typed.open.name, word);
      typed.open = undefined;
    } else if (typed.isClosed || !word.startsWith("-") || word === "-") typed.count++;
    else if (word === "--") typed.isClosed = true;
    else {
      const flag = flagNamed(name, command) ?? Object.values(command.flags).find(({ char }) => char === word[1]);
      const isOpen = flag?.type === "option" && (name === "" ? word.length === 2 : !word.includes("="));
      if (isOpen) typed.open = flag;
      else if (flag !== undefined) typed.values.set(flag.name, value);
    }
  }
  return typed;
}

function placeAfter(typed: Typed, current: string, { flags, args, strict }: Command.Loadable): Place {
  if (typed.open !== undefined) return valuesOfFlag(typed.open);
  const fixed = Object.values(flags)
    .filter((flag) => !typed.values.has(flag.name) || (flag.type === "option" && flag.multiple))
    .map(({ name, description = "" }) => ({ value: `--${name}`, description }))
    .concat({ value: "--help", description: "show flags and examples" });
  if (current.startsWith("-") && !typed.isClosed) return { fixed };
  const all = Object.values(args);
  const argument = all[typed.count] ?? (strict === false ? all.at(-1) : undefined);
  if (argument !== undefined) return valuesOfArgument(argument);
  // The command line of any program may follow `--`, so offer the names of files.
  return typed.isClosed ? { files: true } : { fixed };
}

function flagNamed(name: string, { flags }: Command.Loadable): Command.Flag.Cached | undefined {
  return Object.values(flags).find((flag) => flag.name === name);
}

function valuesOfFlag(flag: Command.Flag.Cached | undefined): Place {
  if (flag?.type !== "option") return {};
  if (flag.options !== undefined) return { fixed: plain(flag.options) };
  if (flag.helpValue === "VAR") return { fixed: plain(Object.keys(process.env)) };
  return ["FILE", "DIR", "PATH"].includes(String(flag.helpValue)) ? { files: true } : { ids: IDS[flag.name] ?? [] };
}

function valuesOfArgument({ name, options }: Command.Arg.Cached): Place {
  if (options !== undefined) return { fixed: plain(options) };
  if (name === "key") return { fixed: plain([...keysBelow(keyTree())].map((key) => key.name)) };
  if (name === "code") return { fixed: plain(Object.keys(ERRORS)) };
  if (name === "token") return { ids: ["token"] };
  if (name === "name") return { ids: ["server", "session", "user"] };
  return name === "path" || name === "file" ? { files: true } : { ids: IDS[name] ?? [] };
}

/** The words that may come next in the name of a command that begins with the words before the cursor. */
function commandWords(before: readonly string[], current: string, config: Config): Candidate[] {
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
