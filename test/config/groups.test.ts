import { describe, expect, it } from "vitest";
import { Folder } from "./folder.js";

describe("limits.groups", () => {
  it("limits.groups can be set in a file, and as JSON in a variable", async () => {
    await using folder = new Folder();
    const groups = { interns: { tokensPerDay: 100_000, sessions: null }, "lab 1": {} };
    folder.write(folder.userFile, { limits: { groups } });
    expect(folder.load().config.limits.groups).toEqual(groups);
    const env = { COPILOTFLEET_LIMITS_GROUPS: '{"staff":{"turnsPerMinute":5}}' };
    expect(folder.load({ env: { ...env, XDG_CONFIG_HOME: `${folder.home}/config` } }).config.limits.groups).toEqual({
      staff: { turnsPerMinute: 5 },
    });
  });

  it.each<[string, unknown, string]>([
    ["limits.groups.interns.tokensPerDay", { interns: { tokensPerDay: "many" } }, "a whole number from 1"],
    ["limits.groups.interns.sessions", { interns: { sessions: 0 } }, "a whole number from 1"],
    ["limits.groups.interns", { interns: 5 }, "an object with the names of groups"],
    ["limits.groups", 5, "an object with the names of groups"],
  ])("a wrong value in limits.groups is refused, and the error names %s", async (name, groups, allowed) => {
    await using folder = new Folder();
    folder.write(folder.userFile, { limits: { groups } });
    const { code, message } = folder.refusal();
    expect(code).toBe("FLEET_CONFIG_INVALID");
    expect(message).toContain(`${name} in ${folder.userFile}, line 1`);
    expect(message).toContain(allowed);
  });

  it("an unknown limit of a group is refused, and the error names the known limits", async () => {
    await using folder = new Folder();
    folder.write(folder.userFile, { limits: { groups: { interns: { tokens: 5 } } } });
    const { code, message } = folder.refusal();
    expect(code).toBe("FLEET_CONFIG_INVALID");
    expect(message).toContain('"limits.groups.interns.tokens" is not a key');
    expect(message).toContain("turnsPerMinute, concurrentTurns");
  });
});
