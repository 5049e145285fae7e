import { describe, expect, it } from "vitest";
import { testFleet } from "../fixtures/commands/cli.js";

const fleet = testFleet();

describe("an unknown or misplaced word", () => {
  it.each([
    [["describe", "session", "team"], "copilotfleet describe session/team"],
    [["send", "zz", "and", "now", "--user", "a"], "copilotfleet send zz 'and now' --user a"],
    [["send", "zz", "--user", "a"], "copilotfleet send zz - --user a"],
    [["create", "--user", "a", "--prompt", "and", "now"], "Put the whole prompt in quotes."],
    [["unlock", "team", "4f1d"], "copilotfleet unlock team --token TOKEN"],
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
