import { homedir } from "node:os";
import { describe, expect, it } from "vitest";
import { stateRoot, userConfigFile } from "../../src/config/load/paths.js";
import { refusalOf } from "./folder.js";

const linux = { home: "/home/ann", cwd: "/work" } as const;

describe("stateRoot", () => {
  it.each([
    ["Linux", {}, linux, "/home/ann/.local/state/copilotfleet"],
    ["XDG_STATE_HOME", { XDG_STATE_HOME: "/var/x" }, linux, "/var/x/copilotfleet"],
    [
      "a relative XDG_STATE_HOME, which the specification says to ignore",
      { XDG_STATE_HOME: "x" },
      linux,
      "/home/ann/.local/state/copilotfleet",
    ],
    ["an empty XDG_STATE_HOME", { XDG_STATE_HOME: "" }, linux, "/home/ann/.local/state/copilotfleet"],
    ["COPILOTFLEET_HOME", { COPILOTFLEET_HOME: "/srv/fleet", XDG_STATE_HOME: "/var/x" }, linux, "/srv/fleet"],
    ["a relative COPILOTFLEET_HOME", { COPILOTFLEET_HOME: "fleet" }, linux, "/work/fleet"],
    ["HOME", { HOME: "/h" }, {}, "/h/.local/state/copilotfleet"],
    ["no HOME at all", {}, {}, `${homedir()}/.local/state/copilotfleet`],
  ])("stateRoot returns the right state folder for %s", (_, env, options, expected) => {
    expect(stateRoot(env, options)).toBe(expected);
  });

  it.each(["", "  "])("stateRoot refuses an empty COPILOTFLEET_HOME (%j)", (value) => {
    const error = refusalOf(() => stateRoot({ COPILOTFLEET_HOME: value }, linux));
    expect(error).toMatchObject({ code: "FLEET_CONFIG_INVALID", exit: 3 });
    expect(error.message).toContain(`COPILOTFLEET_HOME is "${value}". Allowed:`);
  });
});

describe("userConfigFile", () => {
  it.each([
    [{}, linux, "/home/ann/.config/copilotfleet/config.json"],
    [{ XDG_CONFIG_HOME: "/etc/ann" }, linux, "/etc/ann/copilotfleet/config.json"],
  ])("userConfigFile with the variables %j and the options %j returns %s", (env, options, expected) => {
    expect(userConfigFile(env, options)).toBe(expected);
  });
});
