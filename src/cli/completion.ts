import { setTimeout as delay } from "node:timers/promises";
import type { Command, Config } from "@oclif/core";
import { ERRORS } from "../base/errors/table.js";
import { printable } from "../base/values/text.js";
import { keysBelow, keyTree } from "../config/keys.js";
import { type IdKind, recordedIds } from "../fleet/recorded-ids.js";
import { commandOf, topicOf } from "./command-id.js";

/** How long the fleet may take to answer, in milliseconds. The shell is blocked during this time. */
const ANSWER_MS = 1_000;

/**
 * Matches text that has no special meaning in any shell. All ids match. Other candidates might not: a project's
 * configuration file may name a model `$(command)`, and the environment may contain variables with any name.
 */
const HARMLESS = /^(?:--)?[\p{L}\p{M}\p{N}_.@+:/][\p{L}\p{M}\p{N}_.@+:/-]*$/u;

export interface Found {
  candidates: Candidate[];
  /** Whether the shell should offer names of files. */
  files: boolean;
  /** Whether the fleet did not answer in time. If so, call {@link endAtOnce} after printing. */
  isLate: boolean;
}

/** Finds the candidates for the last word. Never rejects, because an error would disturb the user's prompt. */
export async function findCandidates(words: readonly string[], config: Config): Promise<Found> {
  const place = placeAt(words, config);
  const ids = await idsAt(place);
  const values = [...place.fixed, ...(ids ?? []).map((value) => ({ value, description: null }))];
  const current = words.at(-1) ?? "";
  const given = new Set(place.prefix === "" ? words.slice(0, -1) : []);
  const candidates = values
    .filter(({ value }) => HARMLESS.test(value) && (value.startsWith("--") || !given.has(value)))
    .map(({ value, description }) => ({
      value: place.prefix + value,
      description: description === null ? null : printable(description),
    }))
    .filter(({ value }) => value.startsWith(current));
  return { candidates, files: place.files, isLate: ids === null };
}

/** The ids that the user may type at this place; null if the fleet does not answer in time, empty if it fails. */
async function idsAt({ ids, user, configFile }: Place): Promise<string[] | null> {
  if (ids.length === 0) return [];
  try {
    const options = { env: process.env, cwd: process.cwd(), user, configFile };
    return await Promise.race([recordedIds(ids, options), delay(ANSWER_MS, null, { ref: false })]);
  } catch {
    // For example, the configuration is wrong, or Redis cannot be reached. The completed command will report it.
    return [];
  }
}

/** Ends the process, because a store that does not answer would keep it alive while the user waits at the prompt. */
export function endAtOnce(): never {
  process.exit(0);
}

interface Candidate {
  value: string;
  description: string | null;
}

/** The kinds of words that a user may type at the cursor. */
interface Place {
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

export const SHELLS = ["bash", "zsh", "fish"] as const;
export type Shell = (typeof SHELLS)[number];

/** If `autocomplete` prints this, the shell completes file names. Because of the colon, this cannot be an id. */
export const FILES = ":files";

/**
 * The completion script for each shell. At each press of Tab, a script asks `autocomplete` for candidates. It discards
 * error messages, so that only candidates appear at the prompt. It inserts candidates as text, which the shell never
 * evaluates.
 */
export const SCRIPTS: Readonly<Record<Shell, string>> = {
  // bash also splits words at characters such as = and @, and replaces only the part after the last of them ($2).
  // So the script removes the part before it ($head) from the candidates.
  bash: String.raw`# Completion of copilotfleet for bash. To turn it on, add this line to ~/.bashrc:
#   source <(copilotfleet autocomplete bash)
_copilotfleet() {
  local line=${"$"}{COMP_LINE:0:COMP_POINT} found candidate
  COMPREPLY=()
  found=$(command copilotfleet autocomplete bash -- "$line" 2>/dev/null </dev/null) || return 0
  if [[ $found == ${FILES} ]]; then
    compopt -o default 2>/dev/null
    return 0
  fi
  local word=${"$"}{line##*[[:space:]]}
  local head=${"$"}{word%"$2"}
  head=${"$"}{head//[\"\']/}
  while IFS= read -r candidate; do
    [[ -z $candidate ]] || COMPREPLY+=("${"$"}{candidate#"$head"}")
  done < <(printf '%s\n' "$found")
}
complete -F _copilotfleet copilotfleet`,
  zsh: String.raw`#compdef copilotfleet
# Completion of copilotfleet for zsh. To turn it on, add this line to ~/.zshrc:
#   source <(copilotfleet autocomplete zsh)
_copilotfleet() {
  local found line
  local -a candidates
  found=$(command copilotfleet autocomplete zsh -- "${"$"}{(@Q)words[2,CURRENT-1]}" "${"$"}{(Q)PREFIX}" 2>/dev/null </dev/null) ||
    return 1
  if [[ $found == ${FILES} ]]; then
    _files
    return
  fi
  for line in ${"$"}{(f)found}; do
    candidates+=("${"$"}{${"$"}{line%%$'\t'*}//:/\\:}:${"$"}{line#*$'\t'}")
  done
  _describe copilotfleet candidates
}
if [[ $funcstack[1] == _copilotfleet ]]; then
  _copilotfleet "$@"
else
  whence compdef >/dev/null || { autoload -Uz compinit && compinit -i -D; }
  compdef _copilotfleet copilotfleet
fi`,
  fish: String.raw`# Completion of copilotfleet for fish. To turn it on, add this line to ~/.config/fish/config.fish:
#   copilotfleet autocomplete fish | source
function __copilotfleet_candidates
    set -l before (commandline -opc)
    set -l current (commandline -ct | string replace -r '^["\']' '')
    set -l found (command copilotfleet autocomplete fish -- $before[2..] "$current" 2>/dev/null </dev/null)
    or return
    if test "$found" = ${FILES}
        __fish_complete_path "$current"
    else if test -n "$found"
        printf '%s\n' $found
    end
end
complete -c copilotfleet -f -a '(__copilotfleet_candidates)'`,
};

/**
 * Splits a command line up to the cursor into words, and removes their quotes, as bash does. Expands nothing. The last
 * word ends at the cursor, and is empty after a space.
 */
export function splitLine(line: string): string[] {
  const words: string[] = [];
  let word: string | null = null;
  let quote = "";
  for (let at = 0; at < line.length; at++) {
    const character = line.charAt(at);
    if (character === quote) quote = "";
    else if (quote === "" && (character === '"' || character === "'")) {
      quote = character;
      word ??= "";
    } else if (quote === "" && /\s/.test(character)) {
      if (word !== null) words.push(word);
      word = null;
    } else {
      const isEscape = character === "\\" && quote !== "'";
      word = (word ?? "") + (isEscape ? line.charAt(++at) : character);
    }
  }
  return [...words, word ?? ""];
}
