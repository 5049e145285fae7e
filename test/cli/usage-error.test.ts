import type { Command } from "@oclif/core";
import { expect, it } from "vitest";
import { usageError } from "../../src/cli/usage-error.js";

/** The suggestions of a command that has --user and takes no arguments, when somebody types the argument alice. */
function suggestionsOf(id: string): readonly string[] {
  const command = { id, args: {}, baseFlags: {}, flags: { user: {} } } as unknown as typeof Command;
  const error = Object.assign(new Error("Unexpected argument: alice\nSee more help with --help"), { args: ["alice"] });
  return usageError(error, command).suggestions;
}

it("the error for an unexpected argument suggests --user if the command only shows data", () => {
  expect(suggestionsOf("ps")).toContain('Did you mean --user "alice"?');
});

it.each(["gc", "delete", "rm", "token:revoke"])(
  "the error for an unexpected argument of %s does not suggest --user, because the command deletes",
  (id) => {
    expect(suggestionsOf(id).join("\n")).not.toContain("--user");
  },
);
