import { existsSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { type ErrorShape, RAW, testFleet } from "../fixtures/commands/cli.js";

const fleet = testFleet();
const TOKEN = "ghp_0123456789abcdefghijABCDEFGHIJ012345";

// These tests run only commands that are refused, and such a command must not create the state folder.
afterAll(() => {
  expect(existsSync(fleet.root), "the state folder was made").toBe(false);
});

/** Runs a command with `--json` that must be refused. The test below compares this error with its form as text. */
async function refused(exit: number, args: readonly string[]): Promise<ErrorShape> {
  const error = await fleet.refusal(exit, args);
  expect([error.message, ...error.suggestions].join("\n")).not.toMatch(RAW);
  return error;
}

it.each([
  [["spwan"]],
  [["send"]],
  [["ps", "--\u001b[31m"]],
  [["stop", "--drain", "3s"]],
  [["stop", "a", "--all"]],
  [["list", "--user", "a", "--user", "b"]],
  [["list", "--state", "idel"]],
  [["spawn", "--user", "a\nb"]],
  [["spawn", "--user", "a", "--cwd", "/etc/hostname"]],
  [["spawn", "--user", "a", `--token=${TOKEN}`]],
  [["resume", "\u001b[31m", "--user", "a"]],
  [["send", "s", "t", "--user", "a", "--timeout", "30d"]],
  [["deploy", "systemd", "--output", " "]],
  [["store", "migrate", "--to", "redis://:canary@127.0.0.1"]],
])("the command line %j prints the same error as text and as JSON", async (args) => {
  const [text, error] = await Promise.all([fleet.run(args), refused(2, args)]);
  expect(text).toMatchObject({ code: 2, stdout: "" });
  const expected = [
    `Error: ${error.message.replace(/(?<=[^.?])$/, ".")} [${error.code}]`,
    ...error.suggestions.map((text) => `  ${/^copilotfleet /.test(text) ? "Try" : "Hint"}: ${text}`),
  ];
  expect(text.stderr.replaceAll(/Try \([^()]*\): /g, "Try: ")).toBe(`${expected.join("\n")}\n`);
  expect(text.stderr).not.toMatch(RAW);
});

describe("a command line with a mistake", () => {
  it.each([
    [["spwan"], 'There is no command "spwan".', "copilotfleet spawn"],
    [["lst", "--user", "a"], 'There is no command "lst".', "copilotfleet list"],
    [["ps", "--jsno"], 'There is no flag "--jsno".', "Did you mean --json?"],
    [["ps", "--hlep"], 'There is no flag "--hlep".', "Did you mean --help?"],
    [["spawn", "--usr", "a"], 'There is no flag "--usr".', "Did you mean --user?"],
    [["stop", "--drain", "3s"], 'There is no flag "--drain".', "Did you mean --drain-timeout?"],
    [["create", "--user=a", "--modle=x"], 'There is no flag "--modle".', "Did you mean --model?"],
    [["list", "--state", "idel"], '--state is "idel". Allowed: active, idle, draining or gone', "--help"],
    [["spawn", "bob"], 'Unexpected argument: "bob".', 'Did you mean --user "bob"?'],
    [["ps", "x", "y"], 'Unexpected argument: "x", "y".', "copilotfleet ps --help"],
    [["send", "s", "t", "u", "--user", "a"], 'Unexpected argument: "u".', "copilotfleet send --help"],
    [["resume"], "SESSION is missing.", "copilotfleet resume --help"],
    [["send"], "SESSION and TEXT are missing.", "copilotfleet send --help"],
    [["delete"], "SESSION is missing.", "copilotfleet delete --help"],
    [["create"], "--user is missing.", "copilotfleet create --help"],
    [["connect"], "--user is missing.", "copilotfleet connect --help"],
    [["store", "migrat"], 'There is no command "store migrat".', "copilotfleet store migrate"],
    [["stor"], expect.stringMatching(/^There is no command "stor"\./), "copilotfleet --help"],
    [["store", "migrate", "--too", "x"], 'There is no flag "--too".', "Did you mean --to?"],
    [
      ["list", "--user"],
      expect.stringMatching(/^--user needs a value\. Allowed: USER, show only sessions of this user\.$/),
      "Write --user USER.",
    ],
    [
      ["list", "--user", "a", "--user", "b"],
      "--user was given more than once. Give it once.",
      "copilotfleet list --help",
    ],
  ])("the command line %j is refused with a suggestion of what was meant", async (args, message, suggestion) => {
    const error = await refused(2, args);
    expect(error).toMatchObject({ code: "FLEET_USAGE_INVALID", message });
    expect(error.suggestions).toContainEqual(expect.stringContaining(suggestion));
  });

  it("the error for a command line with control characters shows them escaped", async () => {
    for (const args of [
      ["\u001b[31mps"],
      ["ps", "--\u001b[31m"],
      ["ps", "\u202ex"],
      ["list", "--state", "\u200b\u001b"],
    ]) {
      const error = await refused(2, args);
      expect(error.message).toMatch(/\\u\{(1b|202e|200b)\}/);
    }
  });

  it.each(["__proto__", "constructor", "toString"])("%j is refused as an unknown command", async (name) => {
    const message = expect.stringMatching(`^There is no command "${name}"\\. Allowed: a command such as `);
    expect(await refused(2, [name])).toMatchObject({ message });
  });

  it("delete and stop read no arguments from standard input, which may be meant for another program", async () => {
    expect(await fleet.run(["delete"], { input: "s1\n" })).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("SESSION is missing"),
    });
    expect(await fleet.run(["stop", "--all"], { input: "alice\n" })).toMatchObject({ code: 0, stderr: "" });
  });

  it("send refuses a blank standard input as the prompt", async () => {
    const ran = await fleet.run(["send", "s", "-", "--user", "a"], { input: " \n" });
    expect(ran).toMatchObject({
      code: 2,
      stdout: "",
      stderr: expect.stringContaining("The prompt on standard input is"),
    });
  });
});

describe("a user id", () => {
  it("every command with --user refuses an invalid user id before anything else", async () => {
    const commands = [
      ["connect"],
      ["create"],
      ["resume", "s"],
      ["send", "s", "t"],
      ["list"],
      ["delete", "s"],
      ["stop"],
      ["restart"],
      ["spawn", "--count", "2"],
    ];
    await Promise.all(
      commands.map(async (args) => {
        const error = await fleet.refusal(2, [...args, "--user", "a/b"]);
        expect(error, args.join(" ")).toMatchObject({
          code: "FLEET_USAGE_INVALID",
          message: expect.stringMatching(/^--user "a\/b" is not a user id/),
        });
      }),
    );
  });

  it("spawn --count refuses a user id that the numbers make too long, before it starts a server", async () => {
    const args = ["spawn", "--user", "a".repeat(127), "--count", "10"];
    expect(await refused(2, args)).toMatchObject({ code: "FLEET_USAGE_INVALID" });
  });
});

describe("durations and counts", () => {
  it("send refuses a --timeout that is longer than a timer can wait", async () => {
    // Timers of more than 2^31 ms fire at once, so an earlier version gave up a turn with --timeout 30d after 1 ms.
    expect(await refused(2, ["send", "s", "t", "--user", "a", "--timeout", "30d"])).toMatchObject({
      message: expect.stringMatching(/^--timeout is "30d", which is longer than 24d\. .* at most 24d$/),
    });
  });
});

describe("a token on the command line", () => {
  it.each([
    [["spawn", "--user", "a", "--token", TOKEN]],
    [["spawn", "--user", "a", `--token=${TOKEN}`]],
    [["spawn", "--user", "a", "--token-env", TOKEN]],
    [["spawn", "--user", "a", "--token-file", TOKEN]],
    [["spawn", "--user", "a", TOKEN]],
    [[TOKEN]],
    [["list", "--state", TOKEN]],
  ])("the token in the command line %j is refused and never repeated", async (args) => {
    const error = await refused(2, args);
    expect(JSON.stringify(error)).not.toContain(TOKEN.slice(0, 12));
  });

  it("the error for a token on the command line suggests using --token-env and revoking the token", async () => {
    const unknown = await refused(2, ["spawn", "--user", "a", `--token=${TOKEN}`]);
    expect(unknown.suggestions).toContain("Did you mean --token-env?");
    const asName = await refused(2, ["spawn", "--user", "a", "--token-env", TOKEN]);
    expect(asName.message).toMatch(/takes the name of a variable.*Revoke the token/);
    expect((await refused(2, ["spawn", "--user", "a", "--token-env", "not a name"])).message).toMatch(
      /name of a variable/,
    );
  });
});

it("token revoke refuses a whole token without repeating it, and suggests how to revoke it", async () => {
  const secret = "s".repeat(43);
  const error = await refused(2, ["token", "revoke", `cft_0123456789abcdef_${secret}`]);
  expect(error).toMatchObject({
    message: expect.stringMatching(/^This is a token and not its id\. Revoke it/),
    suggestions: ["copilotfleet token revoke 0123456789abcdef"],
  });
  expect(JSON.stringify(error)).not.toContain(secret);
});

describe("a working folder", () => {
  it("spawn refuses a --cwd that does not exist or is not a folder", async () => {
    for (const cwd of [join(fleet.folder, "nowhere"), "/etc/hostname", "", "\u001b[31m"]) {
      expect(await refused(2, ["spawn", "--user", "a", "--cwd", cwd])).toMatchObject({
        code: "FLEET_USAGE_INVALID",
        message: expect.stringMatching(/^--cwd ".*" (?:does not exist|is a file)/),
      });
    }
  });
});
