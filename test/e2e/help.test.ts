import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Config } from "@oclif/core";
import stringWidth from "string-width";
import { beforeAll, describe, expect, it } from "vitest";
import type { CommandSnapshot } from "../../scripts/schemas/commands.js";
import { GROUPS, renderHelp } from "../../src/cli/help.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { Terminal } from "../fixtures/commands/terminal.js";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const SNAPSHOT = JSON.parse(readFileSync(`${ROOT}/schemas/commands.json`, "utf8")) as Record<string, CommandSnapshot>;
const COMMANDS = Object.keys(SNAPSHOT);
const ALIASES = Object.entries(SNAPSHOT).flatMap(([name, { aliases = [] }]) => aliases.map((alias) => [alias, name]));

const GLOBAL = ["config", "json", "no-color"];

const fleet = testFleet();
let config: Config;
beforeAll(async () => {
  config = await Config.load({ root: ROOT });
});

/** The words of a text, without the backslashes with which help breaks a line for a shell. */
function wordsOf(text: string): string[] {
  return text.split(/\s+/).filter((word) => word !== "\\");
}

describe("help", () => {
  it.each([
    [["help"], ["-h"], ["--help"], []],
    [
      ["help", "spawn"],
      ["spawn", "-h"],
      ["spawn", "--help"],
      ["-h", "spawn"],
      ["help", "start"],
    ],
    [
      ["help", "spawn"],
      ["spawn", "--nonsense", "-h"],
      ["spawn", "--user", "a", "--help"],
    ],
    [["help", "token"], ["token"], ["token", "-h"], ["token", "--help"]],
    [
      ["help", "token", "issue"],
      ["token", "issue", "-h"],
      ["token", "issue", "--user", "a", "-h"],
    ],
    [
      ["help", "help"],
      ["help", "-h"],
    ],
  ])("%j prints the same help as all other ways to ask for it", async (first, ...others) => {
    const help = await fleet.ok(first);
    for (const args of others) expect(await fleet.ok(args), args.join(" ")).toBe(help);
    expect(await fleet.json(first)).toEqual({ help: help.trimEnd() });
  });

  it("--help prints no help where it is the value of another flag or follows --", async () => {
    expect(await fleet.ok(["create", "--user", "a", "--purpose=-h"])).toMatch(/^[0-9a-f-]{36}\n$/);
    expect((await fleet.run(["lock", "s", "--user", "a", "--", "echo", "--help"])).stdout).not.toContain("USAGE");
    expect((await fleet.refusal(2, ["create", "--user", "--help"])).message).toContain("--user");
  });

  it("help for a command that does not exist exits with 2 and suggests a command", async () => {
    const error = await fleet.refusal(2, ["help", "spwan"]);
    expect(error.message).toBe('There is no command "spwan".');
    expect(error.suggestions).toContain("copilotfleet spawn");
  });

  it("help lists each command once, in one of its groups, and lists the exit codes", async () => {
    const help = await fleet.ok(["help"]);
    expect(help.match(/^[A-Z].*$/gm)?.slice(1)).toEqual([
      "USAGE",
      "SERVERS",
      "SESSIONS",
      "USERS",
      "OPERATION",
      "SET-UP",
      "EXIT CODES",
      "MORE",
    ]);
    const listed = GROUPS.flatMap(({ commands }) => commands);
    expect(listed.toSorted()).toEqual([...new Set(COMMANDS.map((name) => name.split(" ")[0]))].toSorted());
    for (const name of listed) expect(help.match(new RegExp(`^ {2}${name} +[A-Z]`, "gm")), name).toHaveLength(1);
    expect(wordsOf(help).join(" ")).toContain("4 not found, or not yours; 5 a conflict;");
  });

  it("help names the address of the documentation, unless package.json has only a placeholder for it", () => {
    const helpFor = (homepage: string) =>
      renderHelp([], Object.assign(Object.create(config) as Config, { pjson: { ...config.pjson, homepage } }), 80);
    expect(helpFor("https://example.com/docs")).toMatch(/Documentation +https:\/\/example\.com\/docs$/);
    expect(helpFor(`https://example.com/${["REPLACE", "ME"].join("-")}/docs`)).not.toMatch(/Documentation|https:/);
  });

  it.each(COMMANDS)("help for %s shows its usage, its flags and an example", async (command) => {
    const help = await fleet.ok(["help", ...command.split(" ")]);
    expect(help).toMatch(new RegExp(`^USAGE\\n {2}\\$ copilotfleet ${command}( |$)`, "m"));
    expect(help).toMatch(/^ +--json {2,}print/m);
    expect(help).toMatch(/^ {2}-h, --help/m);
    const { args = [], flags = {} } = SNAPSHOT[command] ?? {};
    const isPlain = args.length === 0 && Object.keys(flags).every((flag) => GLOBAL.includes(flag));
    if (!isPlain) expect(help).toMatch(new RegExp(`^EXAMPLES\\n.*copilotfleet ${command}`, "m"));
    for (const alias of SNAPSHOT[command]?.aliases ?? [])
      expect(help).toMatch(new RegExp(`^ALIASES\\n(?:.*\\n)*?.*\\$ copilotfleet ${alias}$`, "m"));
    expect(help).not.toMatch(/undefined|<%|\u00a0/);
  });

  it("help fits a terminal of 60 columns", async () => {
    await using terminal = new Terminal(fleet, ["help", "create"], { columns: 60 });
    expect(await terminal.done).toBe(0);
    for (const line of terminal.text.replace(/^EXAMPLES\n[\s\S]*/m, "").split("\n"))
      expect(stringWidth(line)).toBeLessThanOrEqual(60);
    expect(terminal.text).toMatch(/^ +--ephemeral {2,}delete/m);
  });
});

describe("aliases", () => {
  it("ls, sessions, rm, servers, inspect, start and status are aliases of their commands", () => {
    expect(Object.fromEntries(ALIASES)).toMatchObject({
      ls: "list",
      sessions: "list",
      rm: "delete",
      servers: "ps",
      inspect: "describe",
      start: "spawn",
      status: "top",
    });
  });

  it("an alias runs its command, with and without --json, and its errors name the command", async () => {
    const started = await fleet.json<{ server: { id: string } }>(["start", "--user", "alice"]);
    await fleet.create("alice", "one");
    expect(await fleet.json(["servers", "--user", "alice"])).toMatchObject({ servers: [{ id: started.server.id }] });
    for (const alias of ["ls", "sessions"]) {
      expect(await fleet.json([alias, "--user", "alice"])).toMatchObject({ sessions: [{ id: "one" }] });
      expect(await fleet.ok([alias, "-o", "name"])).toBe(await fleet.ok(["list", "-o", "name"]));
    }
    expect(await fleet.json(["ls", "--user", "alice", "-o", "json"])).toMatchObject({ sessions: [{ id: "one" }] });
    expect(await fleet.ok(["rm", "one"])).toBe("one\n");
    expect((await fleet.refusal(2, ["rm"])).suggestions).toContain("copilotfleet delete --help");
  });

  it("status prints the state of the fleet once, even on a terminal", async () => {
    await using terminal = new Terminal(fleet, ["status"]);
    expect(await terminal.done).toBe(0);
    expect(terminal.text).toMatch(/^HOST .*Sessions: \d+ active/s);
    expect(await fleet.json(["status"])).toMatchObject({ hosts: expect.any(Array) });
  });
});
