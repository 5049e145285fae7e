import { statSync } from "node:fs";
import { resolve } from "node:path";
import { Args, Flags, type Interfaces } from "@oclif/core";
import { FleetError, type FleetErrorCode, quote, type Suggestion } from "../../base/errors.js";
import { validateSessionId, validateTitle, validateUser } from "../../base/ids.js";
import { parseDuration, parseMoment, parseWhole } from "../../base/values/measures.js";
import { addressFault, NOT_A_VARIABLE, printable, redact, shellQuote } from "../../base/values/text.js";
import { loadConfig } from "../../config/load/load.js";
import { parseAddress } from "../../config/rules.js";
import { SCOPES, type Scope } from "../../identity/identity.js";
import { label, model, prompt, TIMES } from "../../operations/fields.js";
import { FORMATS, type List, nameOf, type SortKey } from "../render/table.js";

// The fleet checks these values, too, in the same words. The checks here come first, so that the message names the flag.

export const yesFlag = Flags.boolean({ char: "y", description: "do not ask for confirmation" });

export const sessionIdFlag = newSessionIdFlag("id of the session (default: a random id)");

/** A flag for the id of a session that the command creates. */
export function newSessionIdFlag(description: string) {
  return parsedFlag("id", description, "SESSION", validateSessionId);
}

/** A flag whose text the fleet parses later. For a wrong text, `check` already throws an error that names the flag. */
export function textFlag(
  name: string,
  description: string,
  helpValue: string,
  check: (text: string, name: string) => unknown,
) {
  return parsedFlag(name, description, helpValue, (text, flag) => {
    check(text, flag);
    return text;
  });
}

export const modelFlag = textFlag("model", "model to use (default: session.model)", "MODEL", model);

export function purposeFlag(description: string) {
  return textFlag("purpose", description, "TEXT", label);
}

export const titleFlag = titleFlagFor("title of the session (default: its first prompt)");

export function titleFlagFor(description: string) {
  return textFlag("title", description, "TEXT", validateTitle);
}

export const ttlFlag = lifetimeFlag("how long gc keeps the session after its last use (default: session.ttl)");

/** A `--ttl` flag: a lifetime of up to 10 years. */
export function lifetimeFlag(description: string) {
  return textFlag("ttl", description, "DURATION", (text, name) => parseDuration(text, { name }));
}

/** A `--prompt` flag: any text that is not blank, or "-". See `prompt.ts`. */
export function promptFlag(description: string) {
  return textFlag("prompt", `${description}; - reads it from standard input`, "TEXT", prompt);
}

/** A flag whose text `parse` turns into a value. `parse` gets the name of the flag for its error messages. */
export function parsedFlag<Value>(
  name: string,
  description: string,
  helpValue: string,
  parse: (text: string, name: string) => Value,
  rest: { char?: "n"; aliases?: string[] } = {},
): Interfaces.OptionFlag<Value | undefined> {
  const flag = Flags.string({ description, helpValue, ...rest });
  // The types of `Flags.custom` need a type that is known not to be a list.
  return { ...flag, parse: async (text: string) => parse(text, `--${name}`) } as unknown as Interfaces.OptionFlag<
    Value | undefined
  >;
}

/** A flag for a waiting time such as `30s`. Parses to milliseconds. */
export function durationFlag(flag: "drain-timeout" | "timeout" | "wait", description: string) {
  const check = flag === "drain-timeout" ? TIMES.drainTimeout : TIMES[flag];
  return parsedFlag(flag, description, "DURATION", check);
}

/** A flag for a time in the past: how long ago, or a time in ISO 8601. */
export function momentFlag(flag: string, description: string) {
  return parsedFlag(flag, description, "TIME", (text, name) => new Date(parseMoment(text, name)));
}

/** A flag for a whole number within bounds, written in plain digits. */
export function integerFlag(
  name: string,
  description: string,
  bounds: [number, number],
  rest: { char?: "n"; aliases?: string[] } = {},
) {
  return parsedFlag(name, description, "N", (text, flag) => parseWhole(text, flag, bounds), rest);
}

/** A flag that takes one of a few values. The help calls a value `kind`. */
export function choiceFlag<Value extends string>(
  kind: string,
  description: string,
  values: readonly Value[],
  char?: "o",
) {
  return Flags.custom<Value>({
    description,
    helpValue: kind.toUpperCase(),
    options: [...values],
    ...(char === undefined ? {} : { char }),
  })();
}

/** A flag for a folder that exists. Parses to its absolute path. */
export function folderFlag(flag: string, description: string) {
  return parsedFlag(flag, description, "DIR", (value, name) => {
    const found = statSync(value, { throwIfNoEntry: false });
    if (found?.isDirectory() === true) return resolve(value);
    const why = found === undefined ? `does not exist (${printable(resolve(value))})` : "is a file, not a folder";
    const advice: Suggestion[] =
      found !== undefined || value === ""
        ? [`Give an existing folder, such as ${name} /tmp.`]
        : ["Correct the path, or create the folder.", `mkdir -p ${shellQuote(printable(value))}`];
    throw usage(`${name} ${quote(value)} ${why}. Allowed: an existing folder`, advice);
  });
}

/** A flag for an address at which this machine listens. `example` is a usual address. */
export function addressFlag(flag: string, description: string, example: string) {
  return textFlag(flag, description, "HOST:PORT", (value, name) => {
    if (parseAddress(value) !== null) return;
    const fault = addressFault(value) ?? "which is not host:port";
    const withHost = `127.0.0.1:${value}`;
    const meant = parseAddress(withHost) === null ? example : withHost;
    const allowed = `host:port, such as ${example} (port 0: any free one)`;
    throw usage(`${name} is ${quote(value)}, ${fault}. Allowed: ${allowed}`, [`For example, write ${name} ${meant}.`]);
  });
}

/** A flag for the name of an environment variable. */
export function variableFlag(description: string) {
  return Flags.string({ description, helpValue: "VAR" });
}

function variableName(flag: string, value: string, example: string): string {
  if (/^[A-Za-z_][A-Za-z0-9_]*$/.test(value)) return value;
  const allowed = `Allowed: letters, digits and _, not starting with a digit, such as ${example}`;
  throw usage(`The value of ${flag} ${NOT_A_VARIABLE}. ${allowed}`, [
    `Give the name of the variable, not its value: ${flag} ${example}.`,
  ]);
}

/**
 * Returns the value of the variable that a flag names.
 *
 * @param content the usual content of the variable, such as "the URL of a Redis"
 * @param code the code of the error if the variable has no value
 */
export function readVariable(
  flag: string,
  given: string,
  { example, content, code = "FLEET_TOKEN_UNAVAILABLE" }: { example: string; content: string; code?: FleetErrorCode },
): string {
  const name = variableName(flag, given, example);
  const value = process.env[name]?.trim() ?? "";
  if (value !== "") return value;
  // Redact the name, because the user may have given the secret itself instead.
  const message = `The environment variable ${redact(name)}, which ${flag} names, is not set or is empty.`;
  throw new FleetError(code, message, {
    suggestions: [`Set ${redact(name)} to ${content}, or give ${flag} the name of another variable.`],
  });
}

/** A copy of a flag with oclif's rules about other flags. */
export function withRules<F extends object>(flag: F, rules: { dependsOn?: string[]; exclusive?: string[] }): F {
  return { ...flag, ...rules };
}

/** Removes the options that are undefined: those of the flags that the user did not give. */
export function given<Options extends object>(
  options: Options,
): { [Name in keyof Options]?: Exclude<Options[Name], undefined> } {
  const entries = Object.entries(options).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries) as { [Name in keyof Options]?: Exclude<Options[Name], undefined> };
}

export function usage(message: string, suggestions: Suggestion[] = []): FleetError {
  return new FleetError("FLEET_USAGE_INVALID", message, { suggestions });
}

export const leaseWaitFlag = durationFlag(
  "wait",
  "how long to wait while another user holds the session (default: 30s)",
);

/** A flag for the only session that a token gives access to. */
export function onlySessionFlag(what: string) {
  const description = `the only session that the ${what}; the user owns it or is a member`;
  return parsedFlag("session", description, "SESSION", validateSessionId);
}

/** `--scope read --scope admin`, or `--scope read,admin`. */
export const scopeFlag = Flags.custom<Scope>({
  description: "what the token allows; may be repeated (default: use)",
  helpValue: "SCOPE",
  options: [...SCOPES],
  multiple: true,
  delimiter: ",",
})();

/*
 * The rule for the default user (the configuration key `user`, the variable COPILOTFLEET_USER): it only decides which
 * user a command acts as. The commands that cannot work without a user apply it: create, send, chat, resume,
 * transcript, export, import, lock, connect, spawn, route, open and token issue. The default never chooses what a
 * command shows, stops, revokes or deletes, because nobody sees the default on the command line. Without --user, list
 * shows all sessions, and stop needs a server.
 */

const user = {
  char: "u",
  helpValue: "USER",
  parse: async (value: string) => validateUser(value, "--user"),
} as const;

/** The user whom the command is about, as an argument. The default user does not apply. */
export const userArg = Args.string({
  description: "id of the user",
  required: true,
  ignoreStdin: true,
  parse: async (value) => validateUser(value, "USER"),
});

/** A flag that limits the command to one user. The default user does not apply. */
export function userFilter(description: string) {
  return Flags.string({ ...user, description });
}

/** The user whom the command is about, as a flag. The default user does not apply. */
export const namedUserFlag = Flags.string({ ...user, description: "id of the user", required: true });

const acting = {
  ...user,
  description: "id of the user (default: COPILOTFLEET_USER, or the key user)",
  // The default depends on the person who runs the command, so oclif's manifest must not contain it.
  noCacheDefault: true,
};

/** The user that the command acts as. */
export const actingUserFlag = Flags.string({
  ...acting,
  required: true,
  default: async ({ flags }) => defaultUser(flags),
});

/** Like {@link actingUserFlag}, but not required. Has no default if the user gives a flag that `unless` names. */
export function actingUserFlagUnless(unless: readonly string[]) {
  return Flags.string({
    ...acting,
    default: async ({ flags }) => (unless.some((name) => flags[name]) ? undefined : defaultUser(flags)),
  });
}

export const DEFAULT_USER: Suggestion = "export COPILOTFLEET_USER=USER # the default for --user";

/** The error of a command that needs a user and has none. `help` is the command that shows its flags. */
export function missingUser(help: `copilotfleet ${string}`): FleetError {
  return usage("--user is missing.", [DEFAULT_USER, help]);
}

function defaultUser({ config: configFile }: Readonly<Record<string, unknown>>): string | undefined {
  return loadConfig(typeof configFile === "string" ? { configFile } : {}).config.user ?? undefined;
}

const MOST_ROWS = 1_000_000;

/** The flags of each command that prints a list. */
export function listFlags<Row>(list: List<Row>) {
  return inGroup("OUTPUT", {
    output: withRules(choiceFlag("format", "format of the list; wide has all columns", FORMATS, "o"), {
      exclusive: ["json"],
    }),
    quiet: Flags.boolean({ char: "q", description: "print only ids", exclusive: ["output", "json"] }),
    "no-headers": Flags.boolean({ description: "print no headings" }),
    sort: sortFlag(list.columns.map(nameOf)),
    watch: Flags.boolean({
      char: "w",
      description: "show the list until Ctrl-C, updated every 2 seconds; a pipe gets one list after the other",
    }),
    limit: integerFlag("limit", "print at most N rows", [1, MOST_ROWS]),
  });
}

export type ListFlags = Interfaces.InferredFlags<ReturnType<typeof listFlags>>;

function sortFlag(columns: readonly string[]) {
  const description = `column to sort by: ${columns.join(", ")}; with :desc in descending order`;
  return parsedFlag("sort", description, "COLUMN[:desc]", (value): SortKey => {
    const [column = "", order = "asc", ...rest] = value.split(":");
    const isOrder = rest.length === 0 && (order === "asc" || order === "desc");
    if (columns.includes(column) && isOrder) return { column, descending: order === "desc" };
    const allowed = columns.join(", ").replace(/, (?=[^,]*$)/, " or ");
    throw usage(
      `--sort ${quote(value)} is not a column. Allowed: ${allowed}, with :desc after it for descending order.`,
      [`For example, write --sort ${columns[0]} or --sort ${columns[0]}:desc.`],
    );
  });
}

function inGroup<F extends Interfaces.FlagInput>(helpGroup: string, flags: F): F {
  for (const flag of Object.values(flags)) flag.helpGroup = helpGroup;
  return flags;
}

export const memberFlags = {
  collaborative: Flags.boolean({ description: "let members use the session, too, one at a time" }),
  member: Flags.string({
    description: "a user who may use the session; may be repeated",
    helpValue: "USER",
    multiple: true,
    dependsOn: ["collaborative"],
  }),
};

/** The members of a new session; undefined if it is private. */
export function membersOf(flags: { collaborative: boolean; member?: string[] | undefined }): string[] | undefined {
  return flags.collaborative ? (flags.member ?? []) : undefined;
}
