import { Flags, type Interfaces } from "@oclif/core";
import { quote } from "../../base/errors.js";
import { blankFault } from "../../base/values/text.js";
import { type LockOptions, parseLeaseTtl, parseReason, parseWait } from "../../sessions/leases.js";
import {
  actingUserFlagUnless,
  given,
  missingUser,
  readVariable,
  textFlag,
  usage,
  variableFlag,
  withRules,
} from "./flags.js";

export const lockFlags = {
  user: actingUserFlagUnless(["show"]),
  ttl: textFlag("ttl", "how long the lease lasts unless it is renewed (default: lock.ttl)", "DURATION", parseLeaseTtl),
  wait: textFlag("wait", "how long to wait for the lease; 0 tries once (default: 30s)", "DURATION", parseWait),
  show: Flags.boolean({
    description: "show who holds the lease without taking it",
    exclusive: ["ttl", "wait", "steal", "reason"],
  }),
  steal: Flags.boolean({
    description: "take the lease at once from its holder; needs --reason",
    dependsOn: ["reason"],
  }),
  reason: withRules(textFlag("reason", "why the lease is taken over; everybody can read it", "TEXT", parseReason), {
    dependsOn: ["steal"],
  }),
};

/** Splits the command line at `--`, because oclif does not separate the words before it from the words after it. */
export function splitCommand(argv: string[]): { own: string[]; command: string[] | undefined } {
  const end = argv.indexOf("--");
  if (end === -1) return { own: argv, command: undefined };
  return { own: argv.slice(0, end), command: argv.slice(end + 1) };
}

/** Refuses `--` without a COMMAND, and a COMMAND beside `--show`. Call this after parsing. */
export function checkCommand(command: readonly string[] | undefined, show: boolean): void {
  if (command !== undefined && show)
    throw usage("--show and a COMMAND cannot be used together.", ["copilotfleet lock SESSION --show"]);
  if (command?.length === 0)
    throw usage("COMMAND is missing after --. Give a program that runs while you hold the lease.", [
      "copilotfleet lock SESSION --user USER -- COMMAND # runs a program with the lease, then releases it",
      "copilotfleet lock SESSION --user USER # takes the lease",
    ]);
}

export function lockOptions(flags: Interfaces.InferredFlags<typeof lockFlags>): LockOptions {
  const { user, ttl, wait, reason } = flags;
  if (user === undefined) throw missingUser("copilotfleet lock --help");
  return { user, ...given({ ttl, wait, steal: reason === undefined ? undefined : { reason } }) };
}

export const unlockFlags = {
  token: Flags.string({
    description: "lease token that lock printed",
    helpValue: "TOKEN",
    exactlyOne: ["token", "token-env"],
    parse: async (token) => {
      // The message does not show the token, because it is a secret while its lease lasts.
      if (blankFault(token) === null) return token.trim();
      throw usage(`--token is ${quote(token)}, ${blankFault(token)}. Allowed: the token that lock printed`, [
        "copilotfleet unlock SESSION --token TOKEN",
      ]);
    },
  }),
  "token-env": variableFlag("environment variable that holds the lease token"),
};

export function leaseToken({
  token,
  "token-env": variable = "",
}: Interfaces.InferredFlags<typeof unlockFlags>): string {
  const about = { example: "LEASE_TOKEN", content: "the token that lock printed" };
  return token ?? readVariable("--token-env", variable, about);
}
