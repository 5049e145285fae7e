import { Args, Flags } from "@oclif/core";
import { loadConfig } from "../../config/load/load.js";
import type { FleetError, Suggestion } from "../../errors.js";
import { validateUser } from "../../model/ids.js";
import { usage } from "./flags.js";

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
  description: "id of the user (default: user)",
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
