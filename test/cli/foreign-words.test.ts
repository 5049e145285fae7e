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
  it.each([...FOREIGN_COMMANDS])("the error for the foreign command %j suggests existing commands", (words, advice) => {
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
    [["get", "pods", "-o", "wide"], "copilotfleet ps"],
    [["login"], "copilotfleet init"],
    [["help", "exec"], "copilotfleet send SESSION TEXT"],
    [["ps", "-a"], "copilotfleet ps"],
    [["ps", "-aq"], "copilotfleet ps -q"],
    [["serve", "--port", "4300"], "copilotfleet config path"],
    [["unlock", "team", "--user", "a"], "copilotfleet unlock SESSION --token TOKEN"],
    [["rm", "-f", "s"], "Did you mean --yes?"],
    [["transcript", "s", "--user", "a", "--tail", "5"], "Did you mean --turns?"],
    [["list", "--all"], "copilotfleet list"],
    [["deploy", "docker"], "copilotfleet deploy compose"],
    [["config", "set", "isolation", "shared"], "copilotfleet config path"],
    [["whoami"], "copilotfleet config get user"],
    [["update"], "copilotfleet version"],
    [["describe", "session", "team"], "copilotfleet describe session/team"],
    [["describe", "pods", "x"], "copilotfleet describe server/x"],
    [["send", "zz", "and", "now", "--user", "a"], "copilotfleet send zz 'and now' --user a"],
    [["send", "zz", "--user", "a"], "copilotfleet send zz - --user a"],
    [["create", "--user", "a", "--prompt", "and", "now"], "Put the whole prompt in quotes."],
    [["unlock", "team", "4f1d"], "copilotfleet unlock team --token TOKEN"],
    [["stop", "-t", "10", "alice"], "Did you mean --drain-timeout?"],
    [["stop", "-f", "alice"], "Did you mean --force?"],
    [["ps", "--format", "json"], "copilotfleet ps -o json"],
    [["explain", "FLEET_NOPE"], "copilotfleet explain"],
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
    expect(await fleet.refusal(4, ["logs", "nobody", "--tail", "3"])).toMatchObject({ code: "FLEET_SERVER_NOT_FOUND" });
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

  it("each flag of another tool is mapped to flags that exist", () => {
    for (const [flag, names] of FOREIGN_FLAGS) for (const name of names) expect(FLAGS, flag).toContain(name);
  });
});
