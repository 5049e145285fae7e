import { type Config, Errors } from "@oclif/core";
import { closest, distance } from "fastest-levenshtein";
import { FleetError, isFleetError, quote } from "../errors.js";
import { Interrupted } from "./interrupted.js";

interface Invocation {
  args: readonly string[];
  config: Config;
}

/**
 * The one place where an error meets the user: as text on standard error, or with `--json` as the only thing on
 * standard output. Returns the exit code of the contract.
 */
export function reportError(error: unknown, invocation: Invocation): number {
  if (error instanceof Errors.ExitError) return error.oclif.exit ?? 0;
  if (error instanceof Interrupted) return error.exitCode;
  const { code, exit, message, suggestions, stack } = toFleetError(error, invocation);
  const end = invocation.args.indexOf("--");
  const flags = end === -1 ? invocation.args : invocation.args.slice(0, end);
  if (flags.includes("--json")) {
    process.stdout.write(`${JSON.stringify({ error: { code, message, suggestions } }, null, 2)}\n`);
    return exit;
  }
  const lines = [`Error: ${message}`, ...suggestions.map((suggestion) => `  Try: ${suggestion}`)];
  if (code === "FLEET_INTERNAL" || process.env.DEBUG !== undefined) lines.push(causes(error, stack));
  process.stderr.write(`${lines.join("\n")}\n`);
  return exit;
}

function toFleetError(error: unknown, invocation: Invocation): FleetError {
  if (isFleetError(error)) return error;
  if (error instanceof Errors.CLIError) return usageError(error, invocation);
  const message = error instanceof Error ? error.message : String(error);
  return new FleetError("FLEET_INTERNAL", `${message} (this is a bug in copilotfleet)`, { cause: error });
}

/** Turns oclif's complaints about the command line into ours: what was written, and what was meant, probably. */
function usageError(error: Error, { args, config }: Invocation): FleetError {
  const id = args[0] ?? "";
  const command = config.commands.find((candidate) => candidate.id === id || candidate.aliases.includes(id));
  if (command === undefined) {
    const names = config.commandIDs;
    return new FleetError("FLEET_USAGE_INVALID", `There is no command ${quote(id)}.`, {
      suggestions: [...nearest(id, names, (name) => `copilotfleet ${name}`), "copilotfleet --help"],
    });
  }
  const lines = error.message.split("\n").filter((line) => !/^(See more help with --help|USAGE)/.test(line.trim()));
  const message = lines.join(" ").replace(/\s+/g, " ").trim();
  const unknown = /Nonexistent flags?: (.+)$/.exec(message)?.[1]?.split(/,\s*/) ?? [];
  const flags = Object.keys(command.flags).map((name) => `--${name}`);
  return new FleetError("FLEET_USAGE_INVALID", message, {
    cause: error,
    suggestions: [
      ...unknown.flatMap((flag) => nearest(flag, flags, (name) => `${name} instead of ${quote(flag)}`)),
      `copilotfleet ${command.id} --help`,
    ],
  });
}

function nearest(written: string, known: readonly string[], phrase: (name: string) => string): string[] {
  if (known.length === 0) return [];
  const name = closest(written, known);
  return distance(written, name) <= 2 ? [phrase(name)] : [];
}

function causes(error: unknown, stack: string | undefined): string {
  const parts = [stack ?? ""];
  for (let cause = error instanceof Error ? error.cause : undefined; cause instanceof Error; cause = cause.cause) {
    parts.push(`Caused by: ${cause.stack ?? cause.message}`);
  }
  return parts.join("\n");
}
