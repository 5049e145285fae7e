import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Config } from "@oclif/core";
import { beforeAll, describe, expect, it } from "vitest";
import type { CommandSnapshot } from "../../scripts/schemas/commands.js";
import { commandOf } from "../../src/cli/command-id.js";
import { FOREIGN_COMMANDS, FOREIGN_FLAGS } from "../../src/cli/foreign-words.js";
import { unknownCommand } from "../../src/cli/usage-error.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { faultsOf } from "../fixtures/commands/typed-commands.js";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const SNAPSHOT = JSON.parse(readFileSync(`${ROOT}/schemas/commands.json`, "utf8")) as Record<string, CommandSnapshot>;
const FLAGS = Object.values(SNAPSHOT).flatMap(({ flags }) => Object.keys(flags));

const fleet = testFleet();
let config: Config;
beforeAll(async () => {
  config = await Config.load({ root: ROOT });
});

describe("a word that users of other tools type", () => {
  it.each([...FOREIGN_COMMANDS])("%j ends in a message with commands that exist", (words, advice) => {
    const [command = "", second = ""] = words.split(" ");
    const isFlag = second.startsWith("-");
    expect(commandOf(words.split(" "), config)?.id, "a command of ours").toBe(isFlag ? command : undefined);
    expect(advice.length).toBeGreaterThan(0);
    expect(advice.flatMap(faultsOf)).toEqual([]);
    for (const line of advice) expect(line).toMatch(/^copilotfleet .{1,100}$/);
    if (!isFlag)
      expect(unknownCommand(words.split(" "), config).suggestions).toEqual(expect.arrayContaining([...advice]));
  });

  it.each([
    [["run", "-it", "ubuntu"], "copilotfleet create --user USER --prompt TEXT"],
    [["get", "pods", "-o", "wide"], "copilotfleet ps #"],
    [["login"], "copilotfleet init #"],
    [["help", "exec"], "copilotfleet send SESSION TEXT"],
    [["ps", "-a"], "copilotfleet ps #"],
    [["rm", "-f", "s"], "Did you mean --yes?"],
    [["logs", "--tail", "5", "alice"], "Did you mean --lines?"],
    [["stop", "-t", "10", "alice"], "Did you mean --drain-timeout?"],
    [["stop", "-f", "alice"], "Did you mean --force?"],
    [["ps", "--format", "json"], "Did you mean --output?"],
  ])("the command line %j is refused, and the error suggests first what does the same here", async (args, expected) => {
    const { suggestions } = await fleet.refusal(2, args);
    expect(suggestions[0]).toContain(expected);
  });

  it("each flag of another tool stands for a flag that exists", () => {
    for (const [flag, names] of FOREIGN_FLAGS) for (const name of names) expect(FLAGS, flag).toContain(name);
  });
});
