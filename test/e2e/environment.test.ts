import { chmodSync, existsSync, mkdirSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it, onTestFinished } from "vitest";
import { OLDEST_RUNTIME } from "../../src/runtime/launch/versions.js";
import { type ErrorShape, RAW, TestFleet, testFleet } from "../fixtures/commands/cli.js";
import { fake } from "../fixtures/fleets/fault-fleet.js";
import { processesWith } from "../fixtures/processes.js";
import { unused } from "../fixtures/sessions/unused.js";

const fleet = testFleet();

/** Commands that use the state folder. Each of them must refuse a broken environment. */
const TOUCHING = [
  ["spawn", "--user", "a"],
  ["ps"],
  ["stop", "--all"],
  ["create", "--user", "a"],
  ["send", "s", "x", "--user", "a"],
  ["list"],
  ["delete", "s"],
  ["logs", "s"],
  ["connect", "--user", "a"],
];

async function refusedByAll(env: NodeJS.ProcessEnv, cwd?: string): Promise<ErrorShape> {
  const options = { env, ...(cwd === undefined ? {} : { cwd }) };
  const errors = await Promise.all(TOUCHING.map((args) => fleet.refusal(3, args, options)));
  const [first] = errors;
  if (first === undefined) throw new Error("nothing was run");
  for (const error of errors) expect(error).toEqual(first);
  expect(JSON.stringify(first)).not.toMatch(RAW);
  return first;
}

describe("a state folder", () => {
  it.each([
    ["a file", (path: string) => writeFileSync(path, ""), /is not a folder/, /^Set COPILOTFLEET_HOME to a folder\.$/],
    [
      "a symbolic link",
      (path: string) => {
        mkdirSync(`${path}-target`);
        symlinkSync(`${path}-target`, path);
      },
      /is a symbolic link/,
      /realpath/,
    ],
    [
      "writable for everybody",
      (path: string) => {
        mkdirSync(path);
        chmodSync(path, 0o777);
      },
      /can be written by others \(mode 0777\)/,
      /^chmod go-w /,
    ],
    ["below a file", () => undefined, /below something that is not a folder/, null],
  ] as const)("every command refuses a state folder that is %s", async (what, make, message, wayOut) => {
    const name = what.replaceAll(" ", "-");
    onTestFinished(() => rmSync(join(fleet.folder, name), { recursive: true, force: true }));
    const path = what === "below a file" ? "/etc/hostname/state" : join(fleet.folder, name);
    make(path);
    const before = readdirSync(fleet.folder, { recursive: true }).sort();
    const error = await refusedByAll({ COPILOTFLEET_HOME: path });
    expect(error).toMatchObject({ code: "FLEET_STATE_UNSAFE", message: expect.stringMatching(message) });
    if (wayOut !== null) expect(error.suggestions[0]).toMatch(wayOut);
    expect(readdirSync(fleet.folder, { recursive: true }).sort()).toEqual(before);
    const doctor = await fleet.run(["doctor", "--json"], { env: { COPILOTFLEET_HOME: path } });
    expect(doctor).toMatchObject({ code: 3, stderr: "" });
    expect(doctor.json<{ checks: unknown[] }>().checks).toContainEqual(
      expect.objectContaining({ name: "state folder", ok: false, detail: error.message }),
    );
  });

  it("every command refuses an empty COPILOTFLEET_HOME instead of guessing a state folder", async () => {
    expect(await refusedByAll({ COPILOTFLEET_HOME: "" })).toMatchObject({
      code: "FLEET_CONFIG_INVALID",
      message: expect.stringContaining("COPILOTFLEET_HOME"),
    });
  });
});

describe("the configuration", () => {
  it("a command works and prints no warning if it cannot read HOME", async () => {
    // Nobody can read a home below a file, not even root.
    await fleet.ok(["ps"], { env: { HOME: "/dev/null" }, ownProcess: true });
  });

  it("every command finds a faulty configuration file in a parent folder, and names the exact fault", async () => {
    const project = join(fleet.folder, unused("project"));
    const cwd = join(project, "a", "b");
    mkdirSync(cwd, { recursive: true });
    const file = join(project, ".copilotfleet.json");
    writeFileSync(file, JSON.stringify({ sesion: { ttl: "24h" } }), { mode: 0o644 });
    expect(await refusedByAll({}, cwd)).toMatchObject({
      code: "FLEET_CONFIG_INVALID",
      message: `"sesion" is not a key of the configuration (in ${file}, line 1); the nearest is "session"`,
    });
    writeFileSync(file, '{\n  "ports": { "from": 5000,, }\n}', { mode: 0o644 });
    expect(await refusedByAll({}, cwd)).toMatchObject({
      code: "FLEET_CONFIG_INVALID",
      message: expect.stringMatching(/is not JSON at line 2, column 27/),
    });
    writeFileSync(file, JSON.stringify({ ports: { from: 5000, to: 4000 } }), { mode: 0o644 });
    await fleet.ok(["trust", file]);
    const env = { COPILOTFLEET_PORTS_FROM: undefined, COPILOTFLEET_PORTS_TO: undefined };
    expect(await refusedByAll(env, cwd)).toMatchObject({
      code: "FLEET_CONFIG_INVALID",
      message: expect.stringMatching(/5000, which is more than ports.to, 4000/),
    });
    chmodSync(file, 0o666);
    expect(await refusedByAll(env, cwd)).toMatchObject({
      message: expect.stringMatching(/can be written by everybody/),
    });
  });
});

describe("a runtime", () => {
  it.each([
    ["is missing", () => join(fleet.folder, "nowhere"), "FLEET_RUNTIME_UNUSABLE", 3, /there is no file/],
    [
      "is not executable",
      () => {
        const path = join(fleet.folder, "plain");
        writeFileSync(path, "#!/bin/sh\n", { mode: 0o644 });
        return path;
      },
      "FLEET_RUNTIME_UNUSABLE",
      3,
      /is not executable/,
    ],
    ["is a folder", () => fleet.folder, "FLEET_RUNTIME_UNUSABLE", 3, /is not a file/],
  ] as const)("spawn and create refuse a runtime that %s, and record nothing", async (_, path, code, exit, message) => {
    const env = { COPILOT_CLI_PATH: path() };
    for (const args of [
      ["spawn", "--user", "a"],
      ["create", "--user", "a"],
    ]) {
      expect(await fleet.refusal(exit, args, { env })).toMatchObject({ code, message: expect.stringMatching(message) });
    }
    expect(existsSync(join(fleet.root, "registry"))).toBe(false);
    const doctor = await fleet.run(["doctor", "--json"], { env });
    expect(doctor.code).toBe(exit);
    expect(doctor.json<{ checks: unknown[] }>().checks).toContainEqual(
      expect.objectContaining({ name: "runtime", ok: false, detail: expect.stringMatching(message) }),
    );
  });

  it("spawn refuses and ends a runtime with a newer protocol, and names the versions that fit", async () => {
    const env = { COPILOT_CLI_PATH: fake("newer.mjs") };
    const error = await fleet.refusal(3, ["spawn", "--user", "new"], { env });
    expect(error.code).toBe("FLEET_RUNTIME_UNUSABLE");
    expect(error.message).toMatch(
      /speaks version 4 of the Copilot protocol; this fleet needs version 3\. Version 3 is spoken by SDK 1\.x and CLI 1\.0\.112 or earlier\. Version 4 is spoken by SDK 2\.x and CLI 1\.0\.113 or later\.$/,
    );
    expect(await fleet.server("new")).toMatchObject({ state: "failed", pid: null, port: null });
    const { checks } = (await fleet.run(["doctor", "--json"], { env })).json<{ checks: { name: string }[] }>();
    expect(checks.find(({ name }) => name === "runtime")).toMatchObject({
      ok: false,
      detail: expect.stringContaining("SDK 2.x and CLI 1.0.113 or later"),
    });
  });

  it("spawn refuses and ends a runtime that is older than the oldest supported version, and names that version", async () => {
    const env = { COPILOT_CLI_PATH: fake("older.mjs") };
    const error = await fleet.refusal(3, ["spawn", "--user", "older"], { env });
    expect(error).toMatchObject({
      code: "FLEET_RUNTIME_UNUSABLE",
      message: expect.stringContaining(
        `is version 1.0.80. The oldest version that this fleet supports is ${OLDEST_RUNTIME}.`,
      ),
    });
    expect(await fleet.server("older")).toMatchObject({ state: "failed", pid: null, port: null });
  });

  it("spawn refuses and ends a runtime with an older protocol", async () => {
    const path = fileURLToPath(new URL("../fixtures/commands/cli-old-runtime.mjs", import.meta.url));
    const error = await fleet.refusal(3, ["spawn", "--user", "old"], { env: { COPILOT_CLI_PATH: path } });
    expect(error).toMatchObject({
      code: "FLEET_RUNTIME_UNUSABLE",
      message: expect.stringMatching(/speaks version 1 of the Copilot protocol; this fleet needs version 3/),
    });
    expect(await fleet.server("old")).toMatchObject({ state: "failed", pid: null, port: null });
    expect(processesWith(`COPILOT_HOME=${(await fleet.server("old")).home}`)).toEqual([]);
  });
});

describe("a GitHub token", () => {
  it.each([
    [
      "a variable that is not set",
      ["--token-env", "NOT_SET"],
      {},
      "FLEET_TOKEN_UNAVAILABLE",
      /NOT_SET, which --token-env names, is not set/,
    ],
    ["a variable that is empty", ["--token-env", "EMPTY"], { EMPTY: "" }, "FLEET_TOKEN_UNAVAILABLE", /is empty/],
    [
      "a variable with a blank in its value",
      ["--token-env", "BLANK"],
      { BLANK: "gho_ab cd" },
      "FLEET_TOKEN_UNAVAILABLE",
      /contains spaces/,
    ],
    ["a file that is not there", ["--token-file", "/nowhere"], {}, "FLEET_TOKEN_UNAVAILABLE", /does not exist/],
    ["a file that everybody can read", ["--token-file", "/etc/hostname"], {}, "FLEET_TOKEN_UNAVAILABLE", /mode 644/],
  ])("spawn refuses a GitHub token from %s, and does not record the source", async (_, flags, env, code, message) => {
    const error = await fleet.refusal(3, ["spawn", "--user", "tokens", ...flags], { env });
    expect(error).toMatchObject({ code, message: expect.stringMatching(message) });
    expect(error.message).not.toContain("gho_");
    // An earlier version recorded a source that gave no token, and the next plain spawn failed because of it.
    const { servers } = await fleet.json<{ servers: { user: string }[] }>(["ps"]);
    expect(servers.map(({ user }) => user)).not.toContain("tokens");
  });

  it("spawn exits with 5 if its token source differs from that of the running server", async () => {
    const env = { ONE: "gho_one", TWO: "gho_two" };
    await fleet.ok(["spawn", "--user", "conflict", "--token-env", "ONE"], { env });
    expect(await fleet.refusal(5, ["spawn", "--user", "conflict", "--token-env", "TWO"], { env })).toMatchObject({
      code: "FLEET_SERVER_CONFLICT",
      suggestions: [expect.stringMatching(/^copilotfleet stop conflict-/)],
    });
    expect(await fleet.json(["spawn", "--user", "conflict"], { env })).toMatchObject({ created: false });
  });
});

describe("ports", () => {
  it("spawn --count exits with 6 when the ports run out, and ps shows the servers that it started", async () => {
    const full = new TestFleet({}, { portCount: 2 });
    try {
      const error = await full.refusal(6, ["spawn", "--user", "many", "--count", "4"]);
      expect(error).toMatchObject({ code: "FLEET_PORTS_EXHAUSTED" });
      expect(error.message).toMatch(/No port is left between \d+ and \d+/);
      expect(error.suggestions).toContain("copilotfleet ps");
      expect((await full.json<{ servers: { state: string }[] }>(["ps"])).servers.map(({ state }) => state)).toEqual([
        "ready",
        "ready",
      ]);
    } finally {
      await full.end();
    }
  });
});
