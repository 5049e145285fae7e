import { readdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Command, Interfaces } from "@oclif/core";
import { describe, expect, it } from "vitest";
import { isFleetError } from "../../src/base/errors.js";
import { readUser } from "../../src/base/values/names.js";
import { readRedisUrl } from "../../src/base/values/network.js";
import { usageError } from "../../src/cli/usage-error.js";
import { httpUrl, modelFault } from "../../src/config/rules.js";
import { testFleet } from "../fixtures/commands/cli.js";

const fleet = testFleet();

describe("an unknown or misplaced word", () => {
  it.each([
    [["create", "--user", "a", "--prompt", "and", "now"], 'Leave out "now", or put a text with spaces in quotes.'],
    [["explain", "FLEET_NOPE"], "copilotfleet explain"],
    [["spwan"], "copilotfleet spawn"],
    [["ps", "--usr", "a"], "Did you mean --user?"],
  ])("the command line %j is refused, and the first suggestion is what the user meant", async (args, expected) => {
    const { suggestions } = await fleet.refusal(2, args);
    expect(suggestions[0]).toContain(expected);
  });

  it("explain with an exit code lists the error codes that have this exit code", async () => {
    const { groups } = await fleet.json<{ groups: { exit: number; errors: { code: string }[] }[] }>(["explain", "5"]);
    expect(groups.map(({ exit }) => exit)).toEqual([5]);
    expect(groups[0]?.errors.map(({ code }) => code)).toContain("FLEET_SESSION_LOCKED");
    expect(await fleet.ok(["explain", "5"])).toMatch(/^A conflict \(exit code 5\):\n/);
  });

  it("logs accepts --tail in place of --lines", async () => {
    expect(await fleet.refusal(4, ["logs", "nobody", "--tail", "3"])).toMatchObject({ code: "FLEET_NAME_NOT_FOUND" });
  });

  it.each(["rn", "rmm", "gx", "gcc", "delte", "deleet", "gc2"])(
    "the error for %j does not suggest a command that deletes, even if only that command is similar",
    async (word) => {
      const { suggestions } = await fleet.refusal(2, [word]);
      expect(suggestions.join("\n")).not.toMatch(/copilotfleet (rm|delete|gc)\b/);
    },
  );

  it.each([
    [["type"], ["copilotfleet --help"]],
    [["explain", "FLEET_NOPE"], ["copilotfleet explain"]],
    [["explain", "FLEET_"], ["copilotfleet explain"]],
    [["config", "get", "gc"], ["copilotfleet config show"]],
  ])("the error for %j suggests nothing specific, because no known name is similar", async (args, expected) => {
    expect((await fleet.refusal(2, args)).suggestions).toEqual(expected);
  });
});

/** The suggestions of a command that has --user and takes no arguments, when somebody types the argument alice. */
async function suggestionsOf(id: string): Promise<readonly string[]> {
  const command = { id, args: {}, baseFlags: {}, flags: { user: {} } } as unknown as typeof Command;
  const error = Object.assign(new Error("Unexpected argument: alice\nSee more help with --help"), { args: ["alice"] });
  return (await usageError(error, command)).suggestions;
}

it("the error for an unexpected argument suggests --user if the command only shows data", async () => {
  expect(await suggestionsOf("ps")).toContain('Did you mean --user "alice"?');
});

it.each(["gc", "delete", "rm", "token:revoke"])(
  "the error for an unexpected argument of %s does not suggest --user, because the command deletes",
  async (id) => {
    const [advice, ...others] = await suggestionsOf(id);
    expect(advice).toBe('Leave out "alice", or put a text with spaces in quotes.');
    expect(others.join("\n")).not.toContain("alice");
  },
);

type Option = Interfaces.OptionFlag<unknown> & { parse: (text: string, context: object, flag: object) => unknown };

const COMMANDS = fileURLToPath(new URL("../../src/cli/commands/", import.meta.url));
const FILES = readdirSync(COMMANDS, { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith(".ts"));
const OPTIONS = (await Promise.all(FILES.map(optionsIn))).flat();

/** The flags of the command in this file that take a value. */
async function optionsIn(file: string): Promise<{ command: string; name: string; definition: Option }[]> {
  const { default: command } = (await import(join(COMMANDS, file))) as { default: typeof Command };
  return Object.entries({ ...command.baseFlags, ...command.flags } as Record<string, Option>)
    .filter(([, { type }]) => type === "option")
    .map(([name, definition]) => ({ command: file.replace(".ts", ""), name, definition }));
}

/** Checks of values that commands make only after parsing the command line, by the `helpValue` of the flags. */
const RULES: Readonly<Record<string, (text: string) => boolean>> = {
  MODEL: (text) => modelFault(text) === null,
  STORE: (text) => readRedisUrl(text) !== null,
  USER: (text) => readUser(text) !== null,
  URL: (text) => httpUrl()["~run"]({ value: text }, {}).issues === undefined,
  VAR: (text) => /^[A-Z_]+$/.test(text),
};

async function accepts({ parse, options, helpValue = "" }: Option, text: string): Promise<boolean> {
  if (options !== undefined && !options.includes(text)) return false;
  await parse(text, {}, {});
  return RULES[String(helpValue)]?.(text) ?? true;
}

describe("the example for a flag", () => {
  it.each(OPTIONS)("$command --$name accepts the example in the error for a wrong value", async (option) => {
    const { definition } = option;
    try {
      await definition.parse("", {}, {});
    } catch (error) {
      if (!isFleetError(error)) throw error;
      const [advice = ""] = error.describe((flag) => flag).suggestions;
      const [, example] = / (?:such as|write) (?:--\S+ )?"?([^\s"]+?)"?(?:\.|, or.*)$/.exec(advice) ?? [];
      if (example !== undefined) expect(await accepts(definition, example), advice).toBe(true);
    }
  });
});
