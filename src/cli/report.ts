import { type Config, Errors } from "@oclif/core";
import { closest, distance } from "fastest-levenshtein";
import { printable, redact } from "../config/values/text.js";
import { FleetError, type FleetErrorCode, isFleetError, quote } from "../errors.js";
import type { EvictionResult } from "../sessions/memory/eviction.js";
import type { SessionView } from "../sessions/view.js";
import { commandOf, spoken } from "./command-id.js";
import { Interrupted } from "./prompt/interrupted.js";
import { unmarked } from "./prompt/prompt.js";

interface Invocation {
  args: readonly string[];
  config: Config;
}

/** The output of a failed command with `--json`. Work that was done in spite of the error stands beside `error`. */
export interface Failure {
  error: {
    code: FleetErrorCode;
    message: string;
    /** The next steps. Each is a command that can be typed, or a sentence that can be followed as it stands. */
    suggestions: string[];
    /** Whether the same call may succeed in a moment, with nothing done by the caller. */
    retryable: boolean;
    /** The time after which the same call may succeed, if it is known. */
    retryAfterMs?: number | undefined;
    /** The limit that was reached, under its name below `limits`. */
    limit?: string | undefined;
  };
  /** The session that `create` created; null if it created none. */
  session?: SessionView | null;
  /** The sessions that `delete` deleted. */
  deleted?: string[];
  /** The sessions that `delete` did not find. */
  notFound?: string[];
  /** The sessions that `evict` unloaded. */
  evicted?: EvictionResult["evicted"];
  /** The sessions that `evict` did not unload. */
  skipped?: EvictionResult["skipped"];
}

/**
 * Reports an error to the user. No other place does this. Writes text to standard error, or with `--json` only JSON to
 * standard output. Returns the documented exit code.
 */
export function reportError(error: unknown, invocation: Invocation): number {
  if (error instanceof Errors.ExitError) return error.oclif.exit ?? 0;
  if (error instanceof Interrupted) return error.exitCode;
  const fleetError = toFleetError(error, invocation);
  const { code, exit, retryable, retryAfterMs, limit, outcome, stack } = fleetError;
  // Do not use `error.message`: oclif adds text around the message of an error that a flag's parser throws.
  const { message, suggestions } = fleetError.describe(asFlag);
  const end = invocation.args.indexOf("--");
  const flags = end === -1 ? invocation.args : invocation.args.slice(0, end);
  if (flags.includes("--json")) {
    const failure: Failure = { error: { code, message, suggestions, retryable, retryAfterMs, limit }, ...outcome };
    process.stdout.write(`${JSON.stringify(failure, null, 2)}\n`);
    return exit;
  }
  const lines = [`Error: ${message}`, ...suggestions.map(asAdvice)];
  if (code === "FLEET_INTERNAL" || process.env.DEBUG !== undefined) lines.push(causes(error, stack));
  process.stderr.write(`${lines.join("\n")}\n`);
  return exit;
}

/** Reports an error that does not end the chat. */
export function reportInChat(error: FleetError): void {
  const { message, suggestions } = error.describe(asFlag);
  process.stderr.write(`${[message, ...suggestions.map(asAdvice)].join("\n")}\n`);
}

function asAdvice(suggestion: string): string {
  return `  Try: ${suggestion}`;
}

function toFleetError(error: unknown, invocation: Invocation): FleetError {
  if (isFleetError(error)) return error;
  if (error instanceof Errors.CLIError) return usageError(error, invocation);
  const message = error instanceof Error ? error.message : String(error);
  return new FleetError("FLEET_INTERNAL", `${message} (this is a bug in copilotfleet)`, { cause: error });
}

/** Options of the library whose flag or argument has a different name. */
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

/** Turns oclif's parse errors into our usage errors. Suggests the flag that the user probably meant. */
function usageError(error: Error, { args, config }: Invocation): FleetError {
  const id = commandOf(args, config)?.id;
  const command = id === undefined ? undefined : config.findCommand(id);
  if (command === undefined) return unknownCommand(args, config);
  const unknown = "flags" in error ? flagNames(error.flags) : [];
  const flags = [...Object.keys(command.flags), "help"].map((name) => `--${name}`);
  return new FleetError("FLEET_USAGE_INVALID", describeUsage(error), {
    cause: error,
    suggestions: [
      ...unknown.flatMap((flag) => nearest(flag, flags, (name) => `${name} instead of ${quoteSafely(flag)}`)),
      ...unknown
        .slice(0, "text" in command.args ? 1 : 0)
        .map((flag) => `-- ${quoteSafely(flag)} if that is the prompt`),
      `copilotfleet ${spoken(command.id)} --help`,
    ],
  });
}

function unknownCommand(args: readonly string[], config: Config): FleetError {
  const [topic = "", word] = args;
  // If the first word is a topic, such as `token`, the second word is the unknown one.
  const inTopic = config.findTopic(topic) !== undefined && word !== undefined && !word.startsWith("-");
  const written = inTopic ? `${topic} ${word}` : topic;
  return new FleetError("FLEET_USAGE_INVALID", `There is no command ${quoteSafely(written)}.`, {
    suggestions: [
      ...nearest(written, config.commandIDs.map(spoken), (name) => `copilotfleet ${name}`),
      inTopic ? `copilotfleet ${topic} --help` : "copilotfleet --help",
    ],
  });
}

/**
 * Describes the fault in the command line. Redacts the values that it quotes, because they may contain anything,
 * including a token.
 */
function describeUsage(error: Error): string {
  const given = "args" in error ? error.args : [];
  if (/^Missing \d+ required arg/.test(error.message)) {
    const missing = Array.isArray(given) ? given.map(({ name }: { name: string }) => name.toUpperCase()) : [];
    return `${missing.join(" and ")} ${missing.length === 1 ? "is" : "are"} missing.`;
  }
  if (/^Unexpected argument/.test(error.message)) {
    return `Unexpected argument: ${textsOf(given).map(quoteSafely).join(", ")}.`;
  }
  if ("flags" in error) return `There is no flag ${flagNames(error.flags).map(quoteSafely).join(", ")}.`;
  const [, flag, value = "", allowed] = /^Expected (--\S+?)=(.*) to be one of: (.+?)\n/s.exec(error.message) ?? [];
  if (flag !== undefined) {
    const noun = flag === "--storage" ? "kind of storage" : flag.slice(2);
    return `${flag} ${quoteSafely(value)} is not a ${noun}. Use ${allowed?.replace(/, (?=[^,]*$)/, " or ")}.`;
  }
  const required = /^\s*Missing required flag (\S+)$/m.exec(error.message)?.[1];
  if (required !== undefined) return `--${required} is missing.`;
  const lines = error.message.split("\n").filter((line) => !/^(See more help with --help|USAGE)/.test(line.trim()));
  return printable(redact(lines.join(" ").replace(/\s+/g, " ").trim()));
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

function nearest(written: string, known: readonly string[], phrase: (name: string) => string): string[] {
  if (known.length === 0) return [];
  const name = closest(written, known);
  const near =
    distance(written, name) <= Math.min(2, written.length - 1)
      ? name
      : known.find((candidate) => candidate.startsWith(`${written}-`));
  return near === undefined ? [] : [phrase(near)];
}

function causes(error: unknown, stack: string | undefined): string {
  const parts = [stack ?? ""];
  for (let cause = error instanceof Error ? error.cause : undefined; cause instanceof Error; cause = cause.cause) {
    parts.push(`Caused by: ${cause.stack ?? cause.message}`);
  }
  return parts.join("\n");
}
