import { Flags, type Interfaces } from "@oclif/core";
import { quote } from "../../base/errors.js";
import { blankFault } from "../../base/values/text.js";
import { type LockOptions, parseLeaseTtl, parseReason, parseWait } from "../../sessions/leases.js";
import { actingUserFlagUnless, given, missingUser, readVariable, textFlag, usage, variableFlag } from "./flags.js";

export const lockFlags = {
  user: actingUserFlagUnless(["show"]),
  ttl: textFlag("ttl", "how long the lease lasts unless it is renewed (default: lock.ttl)", "DURATION", parseLeaseTtl),
  wait: textFlag("wait", "how long to wait for the lease; 0 tries once (default: 30s)", "DURATION", parseWait),
  show: Flags.boolean({ description: "show who holds the lease without taking it" }),
  steal: Flags.boolean({ description: "take the lease at once from its holder; needs --reason" }),
  reason: textFlag("reason", "why the lease is taken over; everybody can read it", "TEXT", parseReason),
};

/** Splits the command line at `--`, because oclif does not separate the words before it from the words after it. */
export function splitCommand(argv: string[]): { own: string[]; command: string[] | undefined } {
  const end = argv.indexOf("--");
  if (end === -1) return { own: argv, command: undefined };
  return { own: argv.slice(0, end), command: argv.slice(end + 1) };
}

/** Refuses `--` without a COMMAND. Call this after parsing, so that the suggestions name the given session and user. */
export function refuseNoCommand(command: readonly string[] | undefined): void {
  if (command?.length === 0)
    throw usage("COMMAND is missing after --. Give a program that runs while you hold the lease.", [
      "copilotfleet lock SESSION --user USER -- COMMAND # runs a program with the lease, then releases it",
      "copilotfleet lock SESSION --user USER # takes the lease",
    ]);
}

type LockFlags = Interfaces.InferredFlags<typeof lockFlags>;

export function lockOptions({ user, ttl, wait, steal, reason }: LockFlags): LockOptions {
  if (user === undefined) throw missingUser("copilotfleet lock --help");
  if (steal && reason === undefined) {
    throw usage("--steal needs --reason. Say why the lease is taken over.", [
      'copilotfleet lock SESSION --user USER --steal --reason "WHY"',
    ]);
  }
  if (!steal && reason !== undefined)
    throw usage("--reason needs --steal.", ['copilotfleet lock SESSION --user USER --steal --reason "WHY"']);
  return {
    user,
    ...given({ ttl, wait, steal: reason === undefined ? undefined : { reason } }),
  };
}

export function refuseBesideShow({ ttl, wait, steal, reason }: LockFlags, command: string[] | undefined): void {
  const given = [
    ttl === undefined ? [] : "--ttl",
    wait === undefined ? [] : "--wait",
    steal ? "--steal" : [],
    reason === undefined ? [] : "--reason",
    command === undefined ? [] : "a COMMAND",
  ].flat();
  if (given.length > 0) {
    throw usage(`--show and ${given.join(" and ")} cannot be used together, because --show only shows the lease.`, [
      "copilotfleet lock SESSION --show # only shows the lease",
      ...(steal ? (['copilotfleet lock SESSION --user USER --steal --reason "WHY" # takes the lease'] as const) : []),
    ]);
  }
}

export const unlockFlags = {
  token: Flags.string({ description: "lease token that lock printed", helpValue: "TOKEN" }),
  "token-env": variableFlag("environment variable that holds the lease token", "LEASE_TOKEN"),
};

/** Reads the token from one of the two flags. No message shows it, because it is a secret while its lease lasts. */
export function leaseToken({ token, "token-env": variable }: Interfaces.InferredFlags<typeof unlockFlags>): string {
  if ((token === undefined) === (variable === undefined)) {
    throw usage(
      token === undefined
        ? "--token or --token-env is missing. Give the token that lock printed."
        : "--token and --token-env cannot be used together.",
      ["copilotfleet unlock SESSION --token TOKEN", "copilotfleet unlock SESSION --token-env VAR"],
    );
  }
  if (variable !== undefined)
    return readVariable("--token-env", variable, { example: "LEASE_TOKEN", content: "the token that lock printed" });
  const fault = blankFault(token ?? "");
  if (token === undefined || fault !== null)
    throw usage(`--token is ${quote(token)}, ${fault}. Give the token that lock printed.`, [
      "copilotfleet unlock SESSION --token TOKEN",
    ]);
  return token.trim();
}
