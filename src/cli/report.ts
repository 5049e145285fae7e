import { type Config, Errors } from "@oclif/core";
import type { ErrorGroup, Explanation } from "../base/errors/explanation.js";
import {
  FleetError,
  type FleetErrorCode,
  fillIn,
  isCommand,
  isFleetError,
  type Placeholder,
  withoutComment,
} from "../base/errors.js";
import { filesExhausted, lacksFiles, mayLackFiles } from "../base/system/own-limits.js";
import { printable, printableJson, shellQuote } from "../base/values/text.js";
import type { EvictionResult } from "../sessions/memory/eviction.js";
import type { SessionView } from "../sessions/view.js";
import { Interrupted } from "./prompt.js";
import { unknownCommand } from "./usage-error.js";

interface Invocation {
  args: readonly string[];
  /** oclif's configuration; null if it could not be loaded. */
  config: Config | null;
}

/** The `--json` output of a failed command. The fields beside `error` report what the command did before it failed. */
export interface Failure {
  error: {
    code: FleetErrorCode;
    message: string;
    /** The next steps. Each is a command that can be typed, or a sentence that can be followed as it stands. */
    suggestions: string[];
    /** Whether the same call may succeed in a moment even if the caller changes nothing. */
    retryable: boolean;
    /** The time after which the same call may succeed, if it is known. */
    retryAfterMs?: number | undefined;
    /** The limit that was reached: `connections` for one user's limit, `total.connections` for that of all users. */
    limit?: string | undefined;
  };
  /** The session that `create` created; null if it created none. */
  session?: SessionView | null;
  /** The sessions that `delete` deleted. */
  deleted?: string[];
  /** The tokens that `token revoke` revoked. */
  revoked?: string[];
  /** The sessions that `delete` did not find, or the tokens that `token revoke` did not find. */
  notFound?: string[];
  /** The sessions that `evict` unloaded. */
  evicted?: EvictionResult["evicted"];
  /** The sessions that `evict` did not unload. */
  skipped?: EvictionResult["skipped"];
}

/**
 * Reports the error that ended the command. Writes text to standard error, or with `--json` only JSON to standard
 * output. Returns the documented exit code.
 */
export function reportError(error: unknown, invocation: Invocation): number {
  if (error instanceof Errors.ExitError) return error.oclif.exit ?? 0;
  if (error instanceof Interrupted) {
    if (error.note !== null && !isJson(invocation)) process.stderr.write(`${error.note}\n`);
    return error.exitCode;
  }
  const fleetError = toFleetError(error, invocation);
  const { code, exit, retryable, retryAfterMs, limit, outcome, stack } = fleetError;
  // Do not use `error.message`: oclif adds text around the message of an error that a flag's parser throws.
  const { message, suggestions } = fleetError.describe(asFlag);
  if (isJson(invocation)) {
    const failure: Failure = {
      error: {
        code,
        message,
        suggestions: suggestions.map((text) => withoutComment(text).line),
        retryable,
        retryAfterMs,
        limit,
      },
      ...outcome,
    };
    process.stdout.write(`${printableJson(failure, 2)}\n`);
    return exit;
  }
  const lines = [`Error: ${sentence(message)} [${code}]`, ...suggestions.map(asAdvice)];
  if (code === "FLEET_INTERNAL" || process.env.DEBUG !== undefined) lines.push(causes(error, stack));
  process.stderr.write(`${lines.join("\n")}\n`);
  return exit;
}

function isJson({ args }: Invocation): boolean {
  const end = args.indexOf("--");
  return (end === -1 ? args : args.slice(0, end)).includes("--json");
}

/** Reports an error after which the command still finished the rest of its work and printed its result. */
export function reportBesides(error: FleetError): void {
  process.stderr.write(`Error: ${errorText(error)}\n`);
}

/** The message, the code and the next steps of an error, as text for people. */
export function errorText(error: FleetError): string {
  const { message, suggestions } = error.describe(asFlag);
  return [`${sentence(message)} [${error.code}]`, ...suggestions.map(asAdvice)].join("\n");
}

/** The text of an error in a chat. Does not suggest `send` or `resume`, because the next prompt does the same. */
export function inChat(error: FleetError, given: Given): { message: string; advice: string[] } {
  const { message, suggestions } = withGiven(error, given).describe(asFlag);
  const others = suggestions.filter((suggestion) => !/copilotfleet (?:send|resume) /.test(suggestion));
  return { message: `${sentence(message)} [${error.code}]`, advice: others.map(asAdvice) };
}

/** Ends a message with a full stop, so that the code after it does not look like a part of the message. */
function sentence(message: string): string {
  return /[.?!…]$/.test(message) ? message : `${message}.`;
}

function asAdvice(suggestion: string): string {
  return `  ${renderSuggestion(suggestion)}`;
}

function toFleetError(error: unknown, invocation: Invocation): FleetError {
  if (isFleetError(error)) return error;
  const { args, config } = invocation;
  if (config === null && mayLackFiles()) return filesExhausted(error);
  if (config !== null && error instanceof Errors.CLIError) return unknownCommand(args, config);
  if (lacksFiles(error)) return filesExhausted(error);
  const message = error instanceof Error ? error.message : String(error);
  return new FleetError("FLEET_INTERNAL", `${message} (this is a bug in copilotfleet)`, { cause: error });
}

/** The options of the library that have another name on the command line, each with that flag or argument. */
const FLAGS: Readonly<Record<string, string>> = {
  members: "--member",
  sessionId: "--id",
  sessionIds: "SESSION",
  token: "--token-env or --token-file",
};

function asFlag(name: string, value: string): string {
  const flag = FLAGS[name] ?? `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
  return value === "" ? flag : `${flag} ${value}`;
}

function causes(error: unknown, stack: string | undefined): string {
  const parts = [stack ?? ""];
  for (let cause = error instanceof Error ? error.cause : undefined; cause instanceof Error; cause = cause.cause) {
    parts.push(`Caused by: ${cause.stack ?? cause.message}`);
  }
  return parts.join("\n");
}

/** The user, the session and the server that a command was given, as words for a shell. */
export type Given = Readonly<Partial<Record<Placeholder, string>>>;

interface Parsed {
  flags: object;
  args: object;
  /** All positional arguments. `args` has only those that the command declares by name. */
  argv: readonly unknown[];
}

/** Reads the user, the session and the server from flags and arguments, which have the same names in all commands. */
export function givenIn({ flags, args, argv }: Parsed, { strict }: { strict: boolean }): Given {
  const { user, id, session = id, server }: Record<string, unknown> = { ...args, ...flags };
  // If the command was given several sessions or servers, leave them out, because an error may concern any of them.
  const isOne = strict || argv.length === 1;
  const values = Object.entries({ USER: user, ...(isOne ? { SESSION: session, SERVER: server } : {}) });
  return Object.fromEntries(
    values.flatMap(([name, value]) => (typeof value === "string" ? [[name, shellQuote(printable(value))]] : [])),
  );
}

/** Replaces placeholders such as USER in the suggestions of an error with the given values. */
export function withGiven(error: FleetError, given: Given): FleetError {
  return error.reworded(({ suggestions }) => ({ suggestions: suggestions.map((text) => fillIn(text, given)) }));
}

/** Renders a next step: "Try" before a command, "Hint" before other text. Moves the comment to the front. */
export function renderSuggestion(suggestion: string): string {
  const { line, comment } = withoutComment(suggestion);
  return `${isCommand(line) ? "Try" : "Hint"}${comment === "" ? "" : ` (${comment})`}: ${line}`;
}

function renderFix(suggestion: string): string {
  const { line, comment } = withoutComment(suggestion);
  return comment === "" ? line : `${line}\n    (${comment})`;
}

export function renderExplanation(explanation: Explanation): string {
  const { code, title, data, exit, httpStatus, retryable, causes, fixes } = explanation;
  const list = (heading: string, items: readonly string[]) =>
    `\n${heading}:\n${items.map((item) => `  - ${item}`).join("\n")}`;
  const again = retryable ? "yes, the same call may succeed in a moment" : "no";
  return [
    `${code}: ${title}`,
    list("Users' data", [data]),
    list("Possible causes", causes),
    list("Next steps", fixes.map(renderFix)),
    `\nExit code ${exit}, HTTP status ${httpStatus}. Worth another try: ${again}.`,
  ].join("\n");
}

export function renderErrorGroups(groups: readonly ErrorGroup[]): string {
  const width = Math.max(...groups.flatMap(({ errors }) => errors.map(({ code }) => code.length)));
  return groups
    .map(({ exit, title, errors }) => {
      const lines = errors.map(({ code, title: meaning }) => `  ${code.padEnd(width)}   ${meaning}`);
      return [`${title} (exit code ${exit}):`, ...lines, ""].join("\n");
    })
    .concat("Explain one of them: copilotfleet explain CODE")
    .join("\n");
}
