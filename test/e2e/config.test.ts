import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import type { ValueView } from "../../src/config/load/inspect.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { Terminal } from "../fixtures/commands/terminal.js";

const fleet = testFleet();
/** Nothing listens at this address, so a command that opened the store would fail. */
const STORE = { env: { COPILOTFLEET_STORE: "rediss://canary@127.0.0.1:1/0" } };
const FILE = join(fleet.folder, "home", ".config", "copilotfleet", "config.json");
mkdirSync(dirname(FILE), { recursive: true });
const write = (text: string) => writeFileSync(FILE, text, { mode: 0o644 });

afterEach(() => write("{}"));

describe("config show", () => {
  it("config show lists every value with its origin, without secrets and without opening the store", async () => {
    write('{\n  "session": { "ttl": "7h" }\n}');
    const shown = await fleet.ok(["config", "show"], STORE);
    expect(shown).toMatch(/^KEY +VALUE +ORIGIN$/m);
    expect(shown).toMatch(/^isolation +per-user +default$/m);
    expect(shown).toContain(` 7h `);
    expect(shown).toMatch(new RegExp(`^session\\.ttl +7h +file ${FILE}:2$`, "m"));
    expect(shown).toMatch(/^provider\.type +echo +variable COPILOTFLEET_PROVIDER_TYPE$/m);
    expect(shown).toMatch(/^store +rediss:\/\/\*\*\*@127\.0\.0\.1:1\/0 +variable COPILOTFLEET_STORE$/m);
    const json = await fleet.ok(["config", "show", "--json"], STORE);
    expect(JSON.parse(json).values["session.ttl"]).toEqual({
      value: "7h",
      origin: { from: "file", name: FILE, line: 2 },
    });
    expect(shown + json).not.toContain("canary");
  });

  it("config show --changed leaves out defaults", async () => {
    const { values } = await fleet.json<{ values: Record<string, ValueView> }>(["config", "show", "--changed"], STORE);
    expect(Object.keys(values)).toContain("store");
    expect(Object.values(values).filter(({ origin }) => origin.from === "default")).toEqual([]);
  });

  it("config show with a wrong configuration shows the other values, reports each problem, and exits with 3", async () => {
    write('{\n  "session": { "ttl": 3600, "model": "m" },\n  "pol": 1\n}');
    const ran = await fleet.run(["config", "show"]);
    expect(ran.code).toBe(3);
    expect(ran.stdout).toMatch(/^session\.model +m /m);
    expect(ran.stdout).not.toMatch(/^session\.ttl /m);
    expect(ran.stderr).toContain(`Error: session.ttl in ${FILE}, line 2, is 3600, which has no unit. Allowed: `);
    expect(ran.stderr).toContain(`  Hint: Correct session.ttl in ${FILE}, line 2, for example "ttl": "30d".\n`);
    expect(ran.stderr).toContain(`Error: "pol" is not a key of the configuration (in ${FILE}, line 3)`);
    const json = await fleet.run(["config", "show", "--json"]);
    expect(json).toMatchObject({ code: 3, stderr: "" });
    expect(json.json<{ problems: { code: string }[] }>().problems.map(({ code }) => code)).toEqual([
      "FLEET_CONFIG_INVALID",
      "FLEET_CONFIG_INVALID",
    ]);
  });

  it.each([60, 80])("config show fits a terminal of %s columns, with one line for each key", async (columns) => {
    await using terminal = new Terminal(fleet, ["config", "show"], { columns });
    expect(await terminal.done).toBe(0);
    const lines = terminal.text.trimEnd().split("\n");
    const { values } = await fleet.json<{ values: object }>(["config", "show"]);
    expect(lines.length).toBe(Object.keys(values).length + 1);
    for (const line of lines) expect(line.length, line).toBeLessThanOrEqual(columns);
  });
});

describe("config get", () => {
  it("config get prints a text without quotes, and other values as JSON", async () => {
    expect(await fleet.ok(["config", "get", "session.ttl"])).toBe("30d\n");
    expect(await fleet.ok(["config", "get", "session.maxActive"])).toBe("50\n");
    expect(await fleet.ok(["config", "get", "session.tools"])).toBe("null\n");
    expect(await fleet.ok(["config", "get", "runtime.env"])).toBe('["HTTPS_PROXY"]\n');
    expect(await fleet.ok(["config", "get", "lock"])).toBe('{"ttl":"300s"}\n');
    expect(await fleet.ok(["config", "get", "store"], STORE)).not.toContain("canary");
    expect(await fleet.json(["config", "get", "drain.timeout"])).toEqual({
      key: "drain.timeout",
      value: "30s",
      origin: { from: "default", name: null, line: null },
      problems: [],
    });
  });

  it("config get suggests the nearest keys for a key that does not exist, and exits with 2", async () => {
    const error = await fleet.refusal(2, ["config", "get", "session.tll"]);
    expect(error.message).toBe('"session.tll" is not a key of the configuration.');
    expect(error.suggestions[0]).toBe("copilotfleet config get session.ttl");
    for (const key of ["", "__proto__", "session.constructor", "."]) await fleet.refusal(2, ["config", "get", key]);
  });

  it("config get prints the value of a valid key even if another key is invalid, and exits with 3", async () => {
    write('{ "session": { "ttl": 3600, "model": "m" } }');
    expect(await fleet.run(["config", "get", "session.model"])).toMatchObject({ code: 3, stdout: "m\n" });
    const wrong = await fleet.run(["config", "get", "session.ttl"]);
    expect(wrong).toMatchObject({ code: 3, stdout: "", stderr: expect.stringContaining("is 3600") });
  });
});

describe("config check", () => {
  it("config check exits with 0 for a valid configuration, and warns about a misspelled variable", async () => {
    const env = { ...STORE.env, COPILOTFLEET_SESION_TTL: "1h" };
    const shown = await fleet.ok(["config", "check"], { env });
    expect(shown).toContain(`The configuration is valid. Files: ${FILE}`);
    expect(shown).toContain("COPILOTFLEET_SESION_TTL (did you mean COPILOTFLEET_SESSION_TTL?)");
    expect(await fleet.json(["config", "check"], { env })).toMatchObject({
      ok: true,
      problems: [],
      warnings: [expect.stringContaining("COPILOTFLEET_SESION_TTL")],
    });
  });

  it("config check prints each problem with its file and line, and exits with 3", async () => {
    write('{\n  "session": { "ttl": 3600 },\n  "pol": 1,\n  "lock": { "ttl": "1y" }\n}');
    const ran = await fleet.run(["config", "check"], { env: { COPILOTFLEET_PORTS_FROM: "x" } });
    expect(ran).toMatchObject({ code: 3, stderr: "" });
    const heads = ran.stdout.split("\n").filter((line) => line.startsWith("FAIL "));
    expect(heads).toEqual([
      expect.stringContaining(`"pol" is not a key of the configuration (in ${FILE}, line 3)`),
      expect.stringContaining(`session.ttl in ${FILE}, line 2, is 3600, which has no unit.`),
      expect.stringContaining(`lock.ttl in ${FILE}, line 4, is "1y", which is not a number with a unit.`),
      expect.stringContaining(`COPILOTFLEET_PORTS_FROM (ports.from) is "x", which is not a whole number.`),
    ]);
    write("{\n");
    const broken = await fleet.run(["config", "check", "--json"]);
    expect(broken.code).toBe(3);
    expect(broken.stdout).toContain("is not JSON at line 2, column 1: it ends too early");
  });
});

it("config path lists the files in order of precedence, whether they exist or not", async () => {
  const project = join(fleet.folder, ".copilotfleet.json");
  writeFileSync(project, "{}", { mode: 0o644 });
  rmSync(FILE);
  const { files } = await fleet.json<{ files: object[] }>(["config", "path"]);
  expect(files).toEqual([
    { path: project, kind: "project", state: "read" },
    { path: FILE, kind: "user", state: "missing" },
  ]);
  const shown = await fleet.ok(["config", "path"]);
  expect(shown).toMatch(/^FILE +KIND +STATE$/m);
  expect(shown).toMatch(new RegExp(`^${project} +project +read$`, "m"));
});

it("config schema prints schemas/config.json, even if the configuration is invalid", async () => {
  write("{");
  const schema = readFileSync(new URL("../../schemas/config.json", import.meta.url), "utf8");
  expect(await fleet.ok(["config", "schema"])).toBe(schema);
});
